// Creates the tables. Runs before `keyturn init`, so it does not open Keyturn.
import { createDataSource } from './data-source.js';

const dataSource = createDataSource();
await dataSource.initialize();
await dataSource.runMigrations();
await dataSource.destroy();
