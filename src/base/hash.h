// Checksums and digests: XXH3-64 (libxxhash) for integrity of stored bytes, SHA-256 (libcrypto) for the identity of texts and
// token sequences in reports. Neither is used for security.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace pq {

uint64_t xxh3(const void* data, int64_t bytes);

// Streaming XXH3-64: update in any pieces equals xxh3 over their concatenation.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(Xxh3Stream&&) noexcept;
  Xxh3Stream& operator=(Xxh3Stream&&) noexcept;
  void update(const void* data, int64_t bytes);
  uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// 64 lower-case hexadecimal digits.
std::string sha256_hex(const void* data, int64_t bytes);

// 16 lower-case hexadecimal digits.
std::string hex64(uint64_t value);

}  // namespace pq
