// Makes or removes one key in the token of a test, in a process of its own: a PKCS#11 library reads its settings once.
const graphene = require('graphene-pk11');

const [library, pin, step] = process.argv.slice(2);
const { add, remove, bytes = 32, extractable = false, sensitive = true } = JSON.parse(step);
const module_ = graphene.Module.load(library);
module_.initialize();
const session = module_.getSlots(0, true).open(graphene.SessionFlag.SERIAL_SESSION | graphene.SessionFlag.RW_SESSION);
session.login(pin);
const template = { class: graphene.ObjectClass.SECRET_KEY, keyType: graphene.KeyType.AES };
if (remove !== undefined) session.destroy({ ...template, label: remove });
if (add !== undefined)
  session.generateKey(graphene.KeyGenMechanism.AES, {
    ...template,
    label: add,
    valueLen: bytes,
    token: true,
    private: true,
    encrypt: true,
    decrypt: true,
    sensitive,
    extractable,
  });
session.close();
