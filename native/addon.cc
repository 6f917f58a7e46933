// The door between JavaScript and aead.cc, on plain N-API. Every length is checked against the buffers it speaks of before
// anything is read; a mistake of the caller is a JavaScript exception, a value that does not authenticate an outcome. All
// state belongs to one environment, so that worker threads have their own.
#include <cstring>
#include <new>
#include <node_api.h>
#include <openssl/crypto.h>

#include "aead.h"

namespace {

using keyturn::Aead;
using keyturn::AssociatedData;
using keyturn::Bytes;
using keyturn::Engine;
using keyturn::Key;
using keyturn::kKeyBytes;
using keyturn::kTagBytes;
using keyturn::Outcome;

/** Raised with every change of what is exported; src/crypto/native-addon.ts uses no other. */
constexpr uint32_t kInterface = 1;

/** OpenSSL counts in int; no value of Keyturn comes near. */
constexpr size_t kMaxBytes = size_t{1} << 30;

/** What src/crypto/native-addon.ts knows as `outcomes`. */
enum ValueOutcome : uint8_t { kReencrypted = 0, kAuthenticationFailed = 1, kVerificationFailed = 2 };

/** Told from every other wrapped object of the process. */
constexpr napi_type_tag kKeyTag = {0x6b65797475726e2f, 0x6e61746976652f31};

struct Span {
  uint8_t* data;
  size_t length;
};

bool Refuse(napi_env env, const char* message) {
  napi_throw_range_error(env, nullptr, message);
  return false;
}

bool Break(napi_env env) {
  napi_throw_error(env, nullptr, "OpenSSL refused an operation that cannot fail");
  return false;
}

template <size_t Count>
bool ReadArguments(napi_env env, napi_callback_info info, napi_value (&arguments)[Count]) {
  size_t count = Count;
  if (napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr) == napi_ok && count == Count) return true;
  return Refuse(env, "another number of arguments is expected");
}

bool ReadArray(napi_env env, napi_value value, napi_typedarray_type wanted, Span* span) {
  bool is_array = false;
  napi_typedarray_type type;
  size_t elements = 0;
  void* data = nullptr;
  if (napi_is_typedarray(env, value, &is_array) != napi_ok || !is_array ||
      napi_get_typedarray_info(env, value, &type, &elements, &data, nullptr, nullptr) != napi_ok || type != wanted)
    return Refuse(env, "a typed array of another type is expected");
  const size_t bytes = wanted == napi_uint32_array ? elements * sizeof(uint32_t) : elements;
  if (bytes > kMaxBytes) return Refuse(env, "a buffer is too long");
  static uint8_t nothing[1];  // an address for what is empty; never written to
  *span = {bytes == 0 ? nothing : static_cast<uint8_t*>(data), bytes};
  return true;
}

bool ReadBytes(napi_env env, napi_value value, Span* span) { return ReadArray(env, value, napi_uint8_array, span); }

bool ReadPosition(napi_env env, napi_value value, size_t* position) {
  uint32_t read = 0;
  if (napi_get_value_uint32(env, value, &read) != napi_ok) return Refuse(env, "a number is expected");
  *position = read;
  return true;
}

bool ReadKey(napi_env env, napi_value value, const Key** key) {
  napi_valuetype type;
  bool is_key = false;
  void* wrapped = nullptr;
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_object ||
      napi_check_object_type_tag(env, value, &kKeyTag, &is_key) != napi_ok || !is_key ||
      napi_unwrap(env, value, &wrapped) != napi_ok)
    return Refuse(env, "a key made by createKey is expected");
  *key = static_cast<const Key*>(wrapped);
  return true;
}

Engine* EngineOf(napi_env env) {
  void* engine = nullptr;
  napi_get_instance_data(env, &engine);
  return static_cast<Engine*>(engine);
}

/** createKey(isXaes, material): material is copied; whoever calls zeroes its own. */
napi_value CreateKey(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  bool is_xaes = false;
  Span material;
  if (!ReadArguments(env, info, arguments)) return nullptr;
  if (napi_get_value_bool(env, arguments[0], &is_xaes) != napi_ok) {
    Refuse(env, "a boolean is expected");
    return nullptr;
  }
  if (!ReadBytes(env, arguments[1], &material)) return nullptr;
  if (material.length != kKeyBytes) {
    Refuse(env, "a key has 32 bytes");
    return nullptr;
  }
  Key* key = new (std::nothrow) Key();
  if (key == nullptr || !key->Open(*EngineOf(env), is_xaes, material.data)) {
    delete key;
    Break(env);
    return nullptr;
  }
  const auto destroy = [](napi_env, void* data, void*) { delete static_cast<Key*>(data); };
  napi_value object = nullptr;
  if (napi_create_object(env, &object) != napi_ok ||
      napi_wrap(env, object, key, destroy, nullptr, nullptr) != napi_ok) {
    delete key;
    Break(env);
    return nullptr;
  }
  // From here on the object owns the key.
  if (napi_type_tag_object(env, object, &kKeyTag) != napi_ok) {
    Break(env);
    return nullptr;
  }
  return object;
}

/** Arguments of seal and unseal: key, sealed, at, associatedData, plaintext; `sealed` from `at` is nonce, ciphertext, tag. */
struct OneValue {
  const Key* key;
  Span sealed;
  Span associated;
  Span plaintext;

  bool Read(napi_env env, napi_callback_info info) {
    napi_value arguments[5];
    size_t at = 0;
    if (!ReadArguments(env, info, arguments) || !ReadKey(env, arguments[0], &key) ||
        !ReadBytes(env, arguments[1], &sealed) || !ReadPosition(env, arguments[2], &at) ||
        !ReadBytes(env, arguments[3], &associated) || !ReadBytes(env, arguments[4], &plaintext))
      return false;
    if (at > sealed.length || sealed.length - at != key->nonce_bytes() + plaintext.length + kTagBytes)
      return Refuse(env, "a sealed value is its nonce, as many bytes as its plaintext, and a tag of 16 bytes");
    sealed = {sealed.data + at, sealed.length - at};
    return true;
  }

  AssociatedData associated_data() const { return {{{associated.data, associated.length}, {}, {}}}; }
};

napi_value Seal(napi_env env, napi_callback_info info) {
  OneValue value;
  if (!value.Read(env, info)) return nullptr;
  const size_t nonce_bytes = value.key->nonce_bytes();
  Aead aead(*EngineOf(env));
  if (aead.Seal(*value.key, value.sealed.data, value.associated_data(), {value.plaintext.data, value.plaintext.length},
                value.sealed.data + nonce_bytes) != Outcome::kDone)
    Break(env);
  return nullptr;
}

/** Whether the tag matches; the plaintext is zeroed where it does not. */
napi_value Unseal(napi_env env, napi_callback_info info) {
  OneValue value;
  if (!value.Read(env, info)) return nullptr;
  const size_t nonce_bytes = value.key->nonce_bytes();
  Aead aead(*EngineOf(env));
  const Outcome outcome =
      aead.Unseal(*value.key, value.sealed.data, value.associated_data(),
                  {value.sealed.data + nonce_bytes, value.sealed.length - nonce_bytes}, value.plaintext.data);
  napi_value matches = nullptr;
  if (outcome == Outcome::kBroken) {
    Break(env);
    return nullptr;
  }
  napi_get_boolean(env, outcome == Outcome::kDone, &matches);
  return matches;
}

/** Memory for secrets: wiped when it is given back. */
class Scratch {
 public:
  explicit Scratch(size_t bytes) : bytes_(bytes), data_(static_cast<uint8_t*>(OPENSSL_malloc(bytes))) {}
  ~Scratch() { OPENSSL_clear_free(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  uint8_t* data() const { return data_; }

 private:
  size_t bytes_;
  uint8_t* data_;
};

/** Arguments of reencrypt: from, to, header, lead, nonces, values, lengths, replacements, outcomes. */
struct Batch {
  const Key* from;
  const Key* to;
  /** Opens every replacement, before its nonce. */
  Span header;
  /** So many bytes of a value's fields stand before its header and nonce in the associated data, the rest behind. */
  size_t lead;
  /** One for each value, of the nonce bytes of `to`. */
  Span nonces;
  /** For each value its envelope and its fields. */
  Span values;
  /** For each value the bytes of both, as two u32. */
  Span lengths;
  /** For each value an envelope as long as its own, but for the nonce; zeros where it failed. */
  Span replacements;
  /** For each value a ValueOutcome. */
  Span outcomes;

  size_t count() const { return outcomes.length; }
  size_t from_bound() const { return header.length + from->nonce_bytes(); }
  size_t to_bound() const { return header.length + to->nonce_bytes(); }

  bool Read(napi_env env, napi_callback_info info) {
    napi_value arguments[9];
    return ReadArguments(env, info, arguments) && ReadKey(env, arguments[0], &from) &&
           ReadKey(env, arguments[1], &to) && ReadBytes(env, arguments[2], &header) &&
           ReadPosition(env, arguments[3], &lead) && ReadBytes(env, arguments[4], &nonces) &&
           ReadBytes(env, arguments[5], &values) && ReadArray(env, arguments[6], napi_uint32_array, &lengths) &&
           ReadBytes(env, arguments[7], &replacements) && ReadBytes(env, arguments[8], &outcomes);
  }

  /** `table`: the batch's own copy of `lengths`, which nobody can change meanwhile. Writes the longest plaintext. */
  bool Check(napi_env env, const uint32_t* table, size_t* longest) const {
    size_t read = 0;
    size_t written = 0;
    *longest = 0;
    for (size_t at = 0; at < count(); at++) {
      const size_t envelope = table[2 * at];
      const size_t fields = table[2 * at + 1];
      if (envelope < from_bound() + kTagBytes) return Refuse(env, "an envelope is shorter than one of nothing");
      if (fields < lead) return Refuse(env, "the fields of a value are shorter than what opens them");
      if (envelope > values.length - read || fields > values.length - read - envelope)
        return Refuse(env, "the lengths exceed the values");
      const size_t plaintext = envelope - from_bound() - kTagBytes;
      const size_t replacement = to_bound() + plaintext + kTagBytes;
      if (replacement > replacements.length - written) return Refuse(env, "the replacements have no room");
      read += envelope + fields;
      written += replacement;
      if (plaintext > *longest) *longest = plaintext;
    }
    if (read != values.length || written != replacements.length)
      return Refuse(env, "the lengths do not add up to the buffers");
    return true;
  }
};

/** A value without what the batch has in common. */
struct OneReplacement {
  Bytes envelope;
  Bytes fields;
  const uint8_t* nonce;
  uint8_t* replacement;
};

AssociatedData AssociatedOf(const Bytes& fields, size_t lead, const uint8_t* bound, size_t bound_bytes) {
  return {{{fields.data, lead}, {bound, bound_bytes}, {fields.data + lead, fields.length - lead}}};
}

/** `plain` and `again`: room for the plaintext each. False where OpenSSL is broken. */
bool ReencryptOne(const Batch& batch, Aead& aead, const OneReplacement& value, uint8_t* plain, uint8_t* again,
                  uint8_t* outcome) {
  const size_t from_bound = batch.from_bound();
  const size_t to_bound = batch.to_bound();
  const size_t header_bytes = batch.header.length;
  const Bytes sealed = {value.envelope.data + from_bound, value.envelope.length - from_bound};
  const size_t length = sealed.length - kTagBytes;
  const size_t replacement_bytes = to_bound + sealed.length;
  const Outcome opened =
      aead.Unseal(*batch.from, value.envelope.data + header_bytes,
                  AssociatedOf(value.fields, batch.lead, value.envelope.data, from_bound), sealed, plain);
  if (opened == Outcome::kBroken) return false;
  if (opened == Outcome::kTagDiffers) {
    std::memset(value.replacement, 0, replacement_bytes);
    *outcome = kAuthenticationFailed;
    return true;
  }
  std::memmove(value.replacement, batch.header.data, header_bytes);
  std::memmove(value.replacement + header_bytes, value.nonce, batch.to->nonce_bytes());
  const AssociatedData associated = AssociatedOf(value.fields, batch.lead, value.replacement, to_bound);
  if (aead.Seal(*batch.to, value.replacement + header_bytes, associated, {plain, length},
                value.replacement + to_bound) != Outcome::kDone)
    return false;
  // What is to overwrite the only copy is opened again as any reader will, from its own bytes, and compared.
  const Outcome verified = aead.Unseal(*batch.to, value.replacement + header_bytes, associated,
                                       {value.replacement + to_bound, sealed.length}, again);
  if (verified == Outcome::kBroken) return false;
  const bool is_same = verified == Outcome::kDone && CRYPTO_memcmp(plain, again, length) == 0;
  if (!is_same) std::memset(value.replacement, 0, replacement_bytes);
  *outcome = is_same ? kReencrypted : kVerificationFailed;
  return true;
}

napi_value Reencrypt(napi_env env, napi_callback_info info) {
  Batch batch;
  if (!batch.Read(env, info)) return nullptr;
  const size_t count = batch.count();
  if (batch.lengths.length != count * 2 * sizeof(uint32_t) || batch.nonces.length != count * batch.to->nonce_bytes()) {
    Refuse(env, "every value has two lengths and a nonce");
    return nullptr;
  }
  if (count == 0 && batch.values.length == 0 && batch.replacements.length == 0) return nullptr;
  const Scratch table(batch.lengths.length + 1);
  if (table.data() == nullptr) {
    Break(env);
    return nullptr;
  }
  std::memcpy(table.data(), batch.lengths.data, batch.lengths.length);
  const uint32_t* lengths = reinterpret_cast<const uint32_t*>(table.data());
  size_t longest = 0;
  if (!batch.Check(env, lengths, &longest)) return nullptr;
  const Scratch plain(longest + 1);
  const Scratch again(longest + 1);
  if (plain.data() == nullptr || again.data() == nullptr) {
    Break(env);
    return nullptr;
  }
  Aead aead(*EngineOf(env));
  const uint8_t* read = batch.values.data;
  uint8_t* written = batch.replacements.data;
  for (size_t at = 0; at < count; at++) {
    const size_t envelope = lengths[2 * at];
    const size_t fields = lengths[2 * at + 1];
    const OneReplacement value = {{read, envelope},
                                  {read + envelope, fields},
                                  batch.nonces.data + at * batch.to->nonce_bytes(),
                                  written};
    if (!ReencryptOne(batch, aead, value, plain.data(), again.data(), batch.outcomes.data + at)) {
      Break(env);
      return nullptr;
    }
    read += envelope + fields;
    written += envelope - batch.from_bound() + batch.to_bound();
  }
  return nullptr;
}

bool Offer(napi_env env, napi_value exports, const char* name, napi_callback callback) {
  napi_value function = nullptr;
  return napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) == napi_ok &&
         napi_set_named_property(env, exports, name, function) == napi_ok;
}

}  // namespace

NAPI_MODULE_INIT() {
  Engine* engine = new (std::nothrow) Engine();
  const auto destroy = [](napi_env, void* data, void*) { delete static_cast<Engine*>(data); };
  if (engine == nullptr || !engine->Open() || napi_set_instance_data(env, engine, destroy, nullptr) != napi_ok) {
    delete engine;
    Break(env);
    return nullptr;
  }
  napi_value version = nullptr;
  if (napi_create_uint32(env, kInterface, &version) != napi_ok ||
      napi_set_named_property(env, exports, "interface", version) != napi_ok ||
      !Offer(env, exports, "createKey", CreateKey) || !Offer(env, exports, "seal", Seal) ||
      !Offer(env, exports, "unseal", Unseal) || !Offer(env, exports, "reencrypt", Reencrypt)) {
    Break(env);
    return nullptr;
  }
  return exports;
}
