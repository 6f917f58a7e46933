// An application process with TypeORM, for the test of a rolling deployment. Arguments: the content of keyturn.yaml and a
// name. Until SIGTERM it inserts buyers and reads all there are; prints `reads N` after each round and `wrong` where one
// is not what it was.
import 'reflect-metadata';
import { DataSource } from 'typeorm';
import { openKeyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { installKeyturn } from '../../src/orm/index.js';
import { Traveller } from './traveller.js';

const [config, name] = process.argv.slice(2).map((argument) => JSON.parse(argument) as unknown) as [ConfigFile, string];
const keyturn = await openKeyturn({ config, name });
const dataSource = new DataSource({ type: 'postgres', url: process.env['DATABASE_URL'] ?? '', entities: [Traveller] });
await dataSource.initialize();
await installKeyturn(dataSource, keyturn);
const travellers = dataSource.getRepository(Traveller);

let isStopping = false;
process.once('SIGTERM', () => {
  isStopping = true;
});
for (let round = 0; !isStopping; round++) {
  const label = `${name}-${round}`;
  await travellers.save({ label, passport: `passport of ${label}` });
  const all = await travellers.find();
  const wrong = all.filter(({ label: of, passport }) => passport !== `passport of ${of}`).length;
  process.stdout.write(wrong === 0 ? `reads ${all.length}\n` : 'wrong\n');
  await new Promise((resolve) => setTimeout(resolve, 50));
}
await dataSource.destroy();
await keyturn.close();
