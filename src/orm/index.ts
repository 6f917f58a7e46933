// keyturn/typeorm: what an application with TypeORM imports.
export { describeTargets, type DescribeOptions } from './describe-targets.js';
export { Encrypted, encryptedColumn, type EncryptedOptions } from './encrypted.js';
export { installKeyturn, type InstalledKeyturn } from './install.js';
export { valueTypes, type ValueType } from './value-type.js';
