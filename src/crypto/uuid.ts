// UUIDs as the 16 raw bytes that derivations and associated data use (RFC 9562), and the one rule by which a tenant
// of any name becomes a UUID.
import { v5 } from 'uuid';
import { KeyturnError } from '../errors.js';
import { isWellFormed } from './encoding.js';

export const uuidBytes = 16;

/** Stands for "no tenant". Shared: callers must not write to it. */
export const nilUuidBytes: Buffer = Buffer.alloc(uuidBytes);

const uuidText = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Takes any case and any version; throws VALUE_INVALID for anything but the 8-4-4-4-12 form. */
export function uuidToBytes(text: string): Buffer {
  if (!uuidText.test(text)) {
    throw new KeyturnError('VALUE_INVALID', `expected a UUID in 8-4-4-4-12 form, got ${text.length} characters`);
  }
  return Buffer.from(text.replaceAll('-', ''), 'hex');
}

/** Lower-case text. */
export function bytesToUuid(bytes: Uint8Array): string {
  if (bytes.length !== uuidBytes) {
    throw new KeyturnError('VALUE_INVALID', `expected the 16 bytes of a UUID, got ${bytes.length}`);
  }
  const hex = Buffer.from(bytes).toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

/**
 * The tenant field of associated data: nil for no tenant, the UUID itself for UUID text in any case, otherwise the
 * UUIDv5 of the text in the namespace of the cluster, so that equal names in two clusters differ.
 */
export function tenantBytes(clusterId: string, tenant: string | null): Buffer {
  if (tenant === null) return nilUuidBytes;
  if (uuidText.test(tenant)) return uuidToBytes(tenant);
  if (!isWellFormed(tenant)) {
    throw new KeyturnError('VALUE_INVALID', 'the tenant is not well-formed Unicode: it holds half a surrogate pair');
  }
  return v5(tenant, uuidToBytes(clusterId), Buffer.alloc(uuidBytes));
}
