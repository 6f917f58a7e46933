// Imported first by a worker: keeps its heap near what it holds. What slices leave behind would otherwise be collected late:
// by default the young generation grows to 32 MB, and the old one to twice what lives before it is looked through.
import { setFlagsFromString } from 'node:v8';

setFlagsFromString('--semi-space-growth-factor=1');
setFlagsFromString('--heap-growing-percent=50');
