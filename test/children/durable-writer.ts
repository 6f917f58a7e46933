// Writes a file durably and kills itself at a chosen point. Arguments: path, content, point.
import { writeDurably } from '../../src/keys/durable-file.js';
import { killFilesAt } from '../support/killing-files.js';

const [path = '', content = '', point] = process.argv.slice(2);
await writeDurably({ path, content: Buffer.from(content), force: true }, killFilesAt(point));
