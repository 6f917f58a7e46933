// AES-256-GCM and XAES-256-GCM (docs/format.md) on the OpenSSL that Node exports. Lengths are the caller's to check: every
// pointer here comes with as many bytes as its comment says. Nothing throws; a failure of OpenSSL itself is `broken`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <openssl/evp.h>

namespace keyturn {

constexpr size_t kKeyBytes = 32;
constexpr size_t kTagBytes = 16;
constexpr size_t kGcmNonceBytes = 12;
constexpr size_t kXaesNonceBytes = 24;

enum class Outcome { kDone, kTagDiffers, kBroken };

struct Bytes {
  const uint8_t* data;
  size_t length;
};

/** Authenticated in this order, as if they were one. */
struct AssociatedData {
  Bytes parts[3];
};

/** The ciphers of one thread of Node; `gcm_context` is used again for every value and wiped after every call. */
class Engine {
 public:
  Engine() = default;
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  bool Open();
  EVP_CIPHER* block_cipher() const { return block_cipher_; }

 private:
  friend class Aead;
  EVP_CIPHER* gcm_cipher_ = nullptr;
  EVP_CIPHER* block_cipher_ = nullptr;
  EVP_CIPHER_CTX* gcm_context_ = nullptr;
};

/** A data key: of AES-256-GCM its bytes, of XAES-256-GCM the block cipher under it and K1 of its CMAC. */
class Key {
 public:
  Key() = default;
  ~Key();
  Key(const Key&) = delete;
  Key& operator=(const Key&) = delete;

  /** `material`: kKeyBytes. */
  bool Open(const Engine& engine, bool is_xaes, const uint8_t* material);
  size_t nonce_bytes() const { return block_context_ == nullptr ? kGcmNonceBytes : kXaesNonceBytes; }

 private:
  friend class Aead;
  uint8_t material_[kKeyBytes] = {};
  uint8_t mask_[16] = {};
  EVP_CIPHER_CTX* block_context_ = nullptr;
};

/** The work of one call. What keys leave behind in the engine is wiped with it. */
class Aead {
 public:
  explicit Aead(Engine& engine);
  ~Aead();
  Aead(const Aead&) = delete;
  Aead& operator=(const Aead&) = delete;

  /** `nonce`: nonce_bytes() of the key; `sealed`: room for `plaintext.length` and the tag. */
  Outcome Seal(const Key& key, const uint8_t* nonce, const AssociatedData& associated, Bytes plaintext, uint8_t* sealed);
  /** `sealed`: ciphertext and tag; `plaintext`: room for the ciphertext's length, zeroed unless the tag matches. */
  Outcome Unseal(const Key& key, const uint8_t* nonce, const AssociatedData& associated, Bytes sealed,
                 uint8_t* plaintext);

 private:
  bool Start(const Key& key, const uint8_t* nonce, const AssociatedData& associated, bool encrypts);

  Engine& engine_;
  bool is_keyed_ = false;
};

}  // namespace keyturn
