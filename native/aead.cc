#include "aead.h"

#include <cstring>
#include <openssl/crypto.h>
#include <openssl/err.h>

namespace keyturn {

namespace {

constexpr size_t kBlockBytes = 16;
constexpr size_t kSubkeyNonceBytes = 12;

/** Twice the block in GF(2^128): the step from L to K1 in CMAC (NIST SP 800-38B). */
void Double(uint8_t* block) {
  unsigned carry = 0;
  for (size_t at = kBlockBytes; at-- > 0;) {
    const unsigned shifted = (static_cast<unsigned>(block[at]) << 1) | carry;
    block[at] = static_cast<uint8_t>(shifted);
    carry = shifted >> 8;
  }
  block[kBlockBytes - 1] = static_cast<uint8_t>(block[kBlockBytes - 1] ^ (carry * 0x87));
}

bool EncryptBlocks(EVP_CIPHER_CTX* context, uint8_t* out, const uint8_t* in, size_t bytes) {
  int written = 0;
  return EVP_EncryptUpdate(context, out, &written, in, static_cast<int>(bytes)) == 1 &&
         written == static_cast<int>(bytes);
}

}  // namespace

bool Engine::Open() {
  gcm_cipher_ = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  block_cipher_ = EVP_CIPHER_fetch(nullptr, "AES-256-ECB", nullptr);
  gcm_context_ = EVP_CIPHER_CTX_new();
  return gcm_cipher_ != nullptr && block_cipher_ != nullptr && gcm_context_ != nullptr;
}

Engine::~Engine() {
  EVP_CIPHER_CTX_free(gcm_context_);
  EVP_CIPHER_free(block_cipher_);
  EVP_CIPHER_free(gcm_cipher_);
}

bool Key::Open(const Engine& engine, bool is_xaes, const uint8_t* material) {
  if (!is_xaes) {
    std::memcpy(material_, material, kKeyBytes);
    return true;
  }
  block_context_ = EVP_CIPHER_CTX_new();
  return block_context_ != nullptr &&
         EVP_EncryptInit_ex2(block_context_, engine.block_cipher(), material, nullptr, nullptr) == 1 &&
         EVP_CIPHER_CTX_set_padding(block_context_, 0) == 1 &&
         EncryptBlocks(block_context_, mask_, mask_, kBlockBytes) && (Double(mask_), true);
}

Key::~Key() {
  EVP_CIPHER_CTX_free(block_context_);  // OpenSSL wipes the key schedule
  OPENSSL_cleanse(material_, sizeof material_);
  OPENSSL_cleanse(mask_, sizeof mask_);
}

Aead::Aead(Engine& engine) : engine_(engine) { ERR_set_mark(); }

Aead::~Aead() {
  if (is_keyed_) EVP_CIPHER_CTX_reset(engine_.gcm_context_);  // wipes the key schedule
  ERR_pop_to_mark();  // Node's own use of OpenSSL on this thread must not find errors of ours
}

bool Aead::Start(const Key& key, const uint8_t* nonce, const AssociatedData& associated, bool encrypts) {
  EVP_CIPHER_CTX* context = engine_.gcm_context_;
  const EVP_CIPHER* cipher = is_keyed_ ? nullptr : engine_.gcm_cipher_;
  is_keyed_ = true;
  if (key.block_context_ == nullptr) {
    if (EVP_CipherInit_ex2(context, cipher, key.material_, nonce, encrypts ? 1 : 0, nullptr) != 1) return false;
  } else {
    // CMAC of two one-block messages (C2SP XAES-256-GCM): counter u16, 'X', 0, first half of the nonce; each masked with K1.
    uint8_t blocks[2 * kBlockBytes];
    uint8_t subkey[kKeyBytes];
    for (size_t half = 0; half < 2; half++) {
      uint8_t* block = blocks + half * kBlockBytes;
      const uint8_t start[4] = {0, static_cast<uint8_t>(half + 1), 0x58, 0};
      for (size_t at = 0; at < sizeof start; at++) block[at] = static_cast<uint8_t>(start[at] ^ key.mask_[at]);
      for (size_t at = 0; at < kSubkeyNonceBytes; at++)
        block[sizeof start + at] = static_cast<uint8_t>(nonce[at] ^ key.mask_[sizeof start + at]);
    }
    const bool is_started =
        EncryptBlocks(key.block_context_, subkey, blocks, sizeof blocks) &&
        EVP_CipherInit_ex2(context, cipher, subkey, nonce + kSubkeyNonceBytes, encrypts ? 1 : 0, nullptr) == 1;
    OPENSSL_cleanse(subkey, sizeof subkey);
    OPENSSL_cleanse(blocks, sizeof blocks);
    if (!is_started) return false;
  }
  for (const Bytes& part : associated.parts) {
    int taken = 0;
    if (part.length > 0 &&
        EVP_CipherUpdate(context, nullptr, &taken, part.data, static_cast<int>(part.length)) != 1)
      return false;
  }
  return true;
}

Outcome Aead::Seal(const Key& key, const uint8_t* nonce, const AssociatedData& associated, Bytes plaintext,
                   uint8_t* sealed) {
  EVP_CIPHER_CTX* context = engine_.gcm_context_;
  int written = 0;
  int rest = 0;
  if (!Start(key, nonce, associated, true)) return Outcome::kBroken;
  if (plaintext.length > 0 &&
      EVP_CipherUpdate(context, sealed, &written, plaintext.data, static_cast<int>(plaintext.length)) != 1)
    return Outcome::kBroken;
  uint8_t nothing[kBlockBytes];
  if (EVP_CipherFinal_ex(context, nothing, &rest) != 1 || static_cast<size_t>(written) != plaintext.length || rest != 0)
    return Outcome::kBroken;
  return EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTagBytes, sealed + plaintext.length) == 1
             ? Outcome::kDone
             : Outcome::kBroken;
}

Outcome Aead::Unseal(const Key& key, const uint8_t* nonce, const AssociatedData& associated, Bytes sealed,
                     uint8_t* plaintext) {
  EVP_CIPHER_CTX* context = engine_.gcm_context_;
  const size_t length = sealed.length - kTagBytes;
  uint8_t tag[kTagBytes];
  std::memcpy(tag, sealed.data + length, kTagBytes);
  int written = 0;
  int rest = 0;
  if (!Start(key, nonce, associated, false) ||
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTagBytes, tag) != 1 ||
      (length > 0 && EVP_CipherUpdate(context, plaintext, &written, sealed.data, static_cast<int>(length)) != 1) ||
      static_cast<size_t>(written) != length) {
    OPENSSL_cleanse(plaintext, length);
    return Outcome::kBroken;
  }
  uint8_t nothing[kBlockBytes];
  // Fails for one reason only: the tag.
  if (EVP_CipherFinal_ex(context, nothing, &rest) == 1) return Outcome::kDone;
  OPENSSL_cleanse(plaintext, length);
  return Outcome::kTagDiffers;
}

}  // namespace keyturn
