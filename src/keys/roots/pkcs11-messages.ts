// What a process says to the child that holds its PKCS#11 library (pkcs11-child.ts), and what it answers.

export interface TokenLogin {
  readonly modulePath: string;
  readonly token: Readonly<Record<'token' | 'serial' | 'manufacturer' | 'model', string | undefined>>;
  readonly pin: string;
}

export interface KeySelector {
  readonly object: string | undefined;
  readonly id: Buffer | undefined;
}

export type TokenRequest =
  | ({ readonly verb: 'login' } & TokenLogin)
  /** Checks the key and answers `block` encrypted by it alone (AES-ECB), which tells it from every other. */
  | { readonly verb: 'identify'; readonly key: KeySelector; readonly block: Buffer }
  | {
      readonly verb: 'encrypt';
      readonly key: KeySelector;
      readonly plaintext: Buffer;
      readonly nonce: Buffer;
      readonly associatedData: Buffer;
    }
  | {
      readonly verb: 'decrypt';
      readonly key: KeySelector;
      readonly ciphertext: Buffer;
      readonly nonce: Buffer;
      readonly associatedData: Buffer;
    };

/** `reason` is in our words or the name of a CKR code; a library's own words never leave the child. */
export type TokenFailure = {
  readonly kind: 'away' | 'throttled' | 'refused' | 'wrong_ciphertext' | 'package_missing' | 'pin_refused';
  readonly reason: string;
};

export type TokenAnswer = { readonly bytes: Buffer } | { readonly failure: TokenFailure };

export interface NumberedRequest {
  readonly id: number;
  readonly request: TokenRequest;
}

export interface NumberedAnswer {
  readonly id: number;
  readonly answer: TokenAnswer;
}
