// What a backend of a device offers to who measures it, beside its operations: time on its stream, its physical limits, memory
// filled without the host. A backend of the host has none of this: dynamic_cast gives null, and a clock of the host serves.
#pragma once

#include <cstdint>
#include <vector>

namespace pq {

class DeviceMeasure {
 public:
  virtual ~DeviceMeasure() = default;

  // A moment of the backend's stream: after all that was given to it before. Does not block.
  virtual void mark() = 0;
  // Waits for the last mark, and forgets them all. Seconds from each mark to the next.
  virtual std::vector<double> intervals() = 0;

  // Device memory to device memory, on the stream, apart from each other; by_kernel: by loads and stores of a kernel instead of the
  // driver's copy. Both aligned to 16 bytes, as is `bytes`.
  virtual void copy(void* to, const void* from, int64_t bytes, bool by_kernel) = 0;
  // Puts `rounds` int8 matrix instructions a unit on the stream, on registers alone; the multiply-adds of them all.
  virtual int64_t multiply(int64_t rounds) = 0;
  // The instruction that multiply measures.
  virtual const char* multiply_name() const = 0;
  // data [words] in device memory: the values that Random(seed).next_u64() gives in turn (base/random.h).
  virtual void fill_random(uint64_t* data, int64_t words, uint64_t seed) = 0;
  // data [count] in device memory: values[word >> 56], the words being those of fill_random. values [256] in host memory, free when
  // this returns.
  virtual void fill_choices(uint16_t* data, int64_t count, const uint16_t* values, uint64_t seed) = 0;
  virtual void fill_choices(float* data, int64_t count, const float* values, uint64_t seed) = 0;

  // Bytes of the buffers that this backend holds, and held at most.
  virtual int64_t held_bytes() const = 0;
  virtual int64_t peak_bytes() const = 0;
  // Bytes of the device that are taken, by whatever process.
  virtual int64_t taken_bytes() const = 0;
  // And those that nobody has taken.
  virtual int64_t free_bytes() const = 0;
};

}  // namespace pq
