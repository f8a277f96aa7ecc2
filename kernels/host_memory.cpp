// Anonymous mappings for large buffers, so that untouched pages cost nothing; the C++ heap for small ones.
#include "kernels/host_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace pq {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kMapFrom = int64_t{1} << 18;
constexpr int64_t kHugePage = int64_t{1} << 21;

[[noreturn]] void refuse(int64_t bytes) {
  throw Error(ErrorKind::environment,
              fmt::format("no memory for a buffer of {} bytes ({:.2f} GiB); use more ranks, a shorter context or fewer bits", bytes,
                          static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0)));
}

}  // namespace

Buffer allocate_host(int64_t bytes) {
  if (bytes < 0) throw Error(ErrorKind::internal, fmt::format("a buffer of {} bytes was asked for", bytes));
  if (bytes == 0) return Buffer();
  if (bytes < kMapFrom) {
    void* data = std::aligned_alloc(kAlignment, static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment));
    if (data == nullptr) refuse(bytes);
    std::memset(data, 0, static_cast<size_t>(bytes));
    return Buffer(data, bytes, std::shared_ptr<void>(data, [](void* p) { std::free(p); }));
  }
  // Over-reserved by one huge page and used from a huge page boundary: otherwise the first and last parts stay on small pages.
  const int64_t slack = bytes >= kHugePage ? kHugePage : 0;
  if (bytes > (int64_t{1} << 62)) refuse(bytes);
  const size_t mapped = static_cast<size_t>(bytes + slack);
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) refuse(bytes);
  void* data = base;
  if (slack > 0) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(base);
    data = reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
    // Advice only: without huge pages the buffer works on small ones.
    madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  }
  return Buffer(data, bytes, std::shared_ptr<void>(base, [mapped](void* p) { munmap(p, mapped); }));
}

}  // namespace pq
