// The public API. Everything else is reached through it or is not for applications.
export { openKeyturn, type Keyturn, type OpenKeyturnOptions } from './app.js';
export type { ConfigFile } from './config.js';
export type { Column, DecryptedValue, KeyValue, RowAddress } from './engine/column.js';
export { KeyturnError, isKeyturnError, type ErrorCode, type ErrorKind } from './errors.js';
export { createProviderRootKey, type BindingContext, type ProviderCipher } from './keys/roots/provider-root-key.js';
export type { RootKey, RootKeyContext, RootKeyProvider } from './keys/roots/root-key.js';
export { findBrokenPromises, type ConformanceOptions } from './formats/conformance.js';
export type { ForeignFormat } from './formats/foreign.js';
export type { CellAddress, DecryptFailure, Format, Storage, Stored } from './formats/format.js';
