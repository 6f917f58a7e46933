// An application process with TypeORM, for the test of a rolling deployment. Arguments: the content of keyturn.yaml, a name
// and a version, `old` or `new`. Until SIGTERM it inserts buyers and reads all there are; prints `reads N` after each round and `wrong` where one
// is not what it was.
import 'reflect-metadata';
import { DataSource } from 'typeorm';
import { openKeyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { installKeyturn } from '../../src/orm/index.js';
import { travellers } from './traveller.js';

const [config, name, version] = process.argv.slice(2).map((argument) => JSON.parse(argument) as unknown) as [
  ConfigFile,
  string,
  keyof typeof travellers,
];
const keyturn = await openKeyturn({ config, name });
const dataSource = new DataSource({
  type: 'postgres',
  url: process.env['DATABASE_URL'] ?? '',
  entities: [travellers[version]],
});
await dataSource.initialize();
await installKeyturn(dataSource, keyturn);
const repository = dataSource.getRepository(travellers[version]);

let isStopping = false;
process.once('SIGTERM', () => {
  isStopping = true;
});
for (let round = 0; !isStopping; round++) {
  const label = `${name}-${round}`;
  const visa = version === 'new' ? { visa: `visa of ${label}` } : {};
  await repository.save({ label, passport: `passport of ${label}`, nickname: `kt1 ${label}`, ...visa });
  const all = await repository.find();
  const wrong = all.filter(
    (one) =>
      one.passport !== `passport of ${one.label}` ||
      one.nickname !== `kt1 ${one.label}` ||
      ('visa' in one && one.visa !== null && one.visa !== `visa of ${one.label}`),
  ).length;
  process.stdout.write(wrong === 0 ? `reads ${all.length}\n` : 'wrong\n');
  await new Promise((resolve) => setTimeout(resolve, 50));
}
await dataSource.destroy();
await keyturn.close();
