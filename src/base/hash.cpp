// Implementation of hash.h over libxxhash and libcrypto.
#include "base/hash.h"

#include <openssl/evp.h>
#include <xxhash.h>
#if defined(__x86_64__)
// The library picks the widest instruction set at run time: its plain entry points are compiled for SSE2.
#include <xxh_x86dispatch.h>
#endif

#include <cstdio>

#include "base/error.h"

namespace pq {

uint64_t xxh3(const void* data, int64_t bytes) { return XXH3_64bits(data, static_cast<size_t>(bytes)); }

struct Xxh3Stream::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

Xxh3Stream::Xxh3Stream() : state_(std::make_unique<State>()) { XXH3_64bits_reset(state_->xxh); }
Xxh3Stream::~Xxh3Stream() = default;
Xxh3Stream::Xxh3Stream(Xxh3Stream&&) noexcept = default;
Xxh3Stream& Xxh3Stream::operator=(Xxh3Stream&&) noexcept = default;
void Xxh3Stream::update(const void* data, int64_t bytes) { XXH3_64bits_update(state_->xxh, data, static_cast<size_t>(bytes)); }
uint64_t Xxh3Stream::digest() const { return XXH3_64bits_digest(state_->xxh); }

std::string sha256_hex(const void* data, int64_t bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  if (EVP_Digest(data, static_cast<size_t>(bytes), digest, &length, EVP_sha256(), nullptr) != 1)
    throw Error(ErrorKind::environment, "libcrypto cannot compute SHA-256");
  std::string text;
  char pair[3];
  for (unsigned int i = 0; i < length; ++i) {
    std::snprintf(pair, sizeof pair, "%02x", digest[i]);
    text += pair;
  }
  return text;
}

std::string hex64(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace pq
