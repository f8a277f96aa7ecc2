// The sums of push_sum.h. A packet is 64 bits, the value and a cookie, and is written and read whole, so no fence is needed: a
// packet whose cookie is the expected one carries the value. The cookie counts the sums so far. Two sets of packets take turns, and
// a set is written again only after every rank has read it: a rank begins sum n + 2 when its sum n + 1 has ended, for which every
// other rank had to begin n + 1, hence to end n. So any block may take any element.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/push_sum.h"
#include "kernels/cuda/rows.h"
#include "kernels/device_memory.h"

namespace pq::cuda {
namespace {

// Of every sum, because each block counts for itself.
constexpr int kBlocks = 16;
constexpr int kThreads = 512;
// Values of one launch; longer sums are cut.
constexpr int64_t kPiece = kPushPieceFloats;
constexpr int64_t kSetBytes = kPiece * 8;
constexpr int64_t kSenderBytes = 2 * kSetBytes;

struct Places {
  uint64_t* send[kMaxPushRanks];           // where this rank's packets go: `targets` of them
  const uint64_t* receive[kMaxPushRanks];  // by rank, where its packets arrive; null for this rank
  uint32_t* counts;                        // [kBlocks], sums so far
  uint32_t* status;                        // host memory: 0; 1 when a block gave up; the host writes 2 to make blocks give up
  uint64_t time_limit_ns;
  int targets;
  int rank;
  int ranks;
};

// The part of a sum over R ranks that one thread has a hand in.
template <int R>
struct Sum {
  const Places& p;
  const uint32_t cookie;
  const int64_t set;  // of packets
  const uint64_t start;
  bool lost = false;

  __device__ explicit Sum(const Places& places)
      : p(places), cookie(places.counts[blockIdx.x] + 1), set((cookie & 1) * kPiece), start(clock_ns()) {}

  __device__ void push(int64_t i, float value) const {
    const uint64_t packet = static_cast<uint64_t>(cookie) << 32 | __float_as_uint(value);
    for (int t = 0; t < p.targets; ++t) store_packet(p.send[t] + set + i, packet);
  }

  // The value of the packet at `place`, read as `packet` a moment ago. Any value once a rank is lost.
  __device__ float wait_for(const uint64_t* place, uint64_t packet) {
    for (uint32_t tries = 1; static_cast<uint32_t>(packet >> 32) != cookie && !lost; ++tries) {
      lost = tries % 1024 == 0 && (clock_ns() - start > p.time_limit_ns || load_word(p.status) != 0);
      packet = load_packet(place);
    }
    return __uint_as_float(static_cast<uint32_t>(packet));
  }

  // own[k] becomes the sum of element first + k * stride, for those below count. The packets of a rank are asked for together: a
  // load takes a microsecond where they lie in host memory. Neighbours are added, then sums of two, of four, each as soon as both
  // are there: `halves` holds what waits for its other half, sums of 2^l ranks at l.
  template <int kEach>
  __device__ void add_others(int64_t first, int64_t stride, int64_t count, float own[kEach]) {
    constexpr int kLevels = R == 2 ? 1 : R == 4 ? 2 : 3;
    static_assert(R == 1 << kLevels);
    float halves[kLevels + 1][kEach];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float values[kEach];
#pragma unroll
      for (int k = 0; k < kEach; ++k) values[k] = own[k];
      if (r != p.rank) {
        const uint64_t* from = p.receive[r] + set + first;
        uint64_t packets[kEach];
#pragma unroll
        for (int k = 0; k < kEach; ++k) packets[k] = first + k * stride < count ? load_packet(from + k * stride) : 0;
#pragma unroll
        for (int k = 0; k < kEach; ++k) {
          if (first + k * stride < count) values[k] = wait_for(from + k * stride, packets[k]);
        }
      }
      int level = 0;
#pragma unroll
      for (int l = 0; l < kLevels; ++l) {
        if (level != l || (r >> l & 1) == 0) continue;
        ++level;
#pragma unroll
        for (int k = 0; k < kEach; ++k) values[k] = halves[l][k] + values[k];
      }
#pragma unroll
      for (int k = 0; k < kEach; ++k) halves[level][k] = values[k];
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) own[k] = halves[kLevels][k];
  }

  // By all threads of the block, at the end.
  __device__ void finish() const {
    if (lost) store_word(p.status, 1);
    __syncthreads();
    if (threadIdx.x == 0) p.counts[blockIdx.x] = cookie;
  }
};

template <int R>
__global__ void __launch_bounds__(kThreads) push_sum_kernel(Places p, float* data, int64_t count) {
  Sum<R> sum(p);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  constexpr int64_t kStride = static_cast<int64_t>(kBlocks) * kThreads;
  for (int64_t i = first; i < count; i += kStride) sum.push(i, data[i]);
  for (int64_t i = first; i < count && !sum.lost; i += kStride) {
    float value[1] = {data[i]};
    sum.template add_others<1>(i, kStride, count, value);
    data[i] = value[0];
  }
  sum.finish();
}

constexpr int kRowThreads = 1024;
constexpr int kRowEach = 5;  // all of a row of 5120

// One row a block: its sum over ranks joins the residual stream, of which norm_row makes the input of the next matrices. Blocks
// without a row count the sum all the same.
template <int R>
__global__ void __launch_bounds__(kRowThreads, 1) push_sum_norm_kernel(Places p, RmsNormArgs a, bool prepared) {
  float* row_copy = dynamic_shared<float>();
  Sum<R> sum(p);
  const int64_t row = blockIdx.x, first = row * a.dim, end = first + a.dim;
  if (row < a.rows) {
    for (int64_t i = first + threadIdx.x; i < end; i += kRowThreads) sum.push(i, a.added[i]);
    for (int64_t i = first + threadIdx.x; i < end; i += kRowEach * kRowThreads) {
      float value[kRowEach];
#pragma unroll
      for (int k = 0; k < kRowEach; ++k) value[k] = i + k * kRowThreads < end ? a.added[i + k * kRowThreads] : 0.0f;
      sum.template add_others<kRowEach>(i, kRowThreads, end, value);
#pragma unroll
      for (int k = 0; k < kRowEach; ++k) {
        const int64_t place = i + k * kRowThreads;
        if (place >= end) break;
        value[k] = a.x[place] + value[k];
        row_copy[place - first] = value[k];
        a.sum[place] = value[k];
      }
    }
    norm_row(a, row_copy, row, prepared);
  }
  sum.finish();
}

// Shared memory of the node that every rank has mapped and its device can address.
class SharedArea {
 public:
  // usable: this rank has what else it needs.
  SharedArea(const RankExchange& exchange, int64_t bytes, bool usable) : bytes_(static_cast<size_t>(bytes)) {
    // Rank 0 makes it under a name that only this job knows; it is unlinked as soon as all have it.
    char name[64] = {};
    if (exchange.rank == 0) {
      std::snprintf(name, sizeof name, "/pq-sum-%ld-%llx", static_cast<long>(getpid()),
                    static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(this) ^ static_cast<uintptr_t>(bytes)));
      file_ = shm_open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
      if (file_ < 0 || ftruncate(file_, bytes) != 0) name[0] = '\0';
    }
    std::vector<char> names(sizeof name * static_cast<size_t>(exchange.ranks));
    exchange.all_gather(name, sizeof name, names.data());
    if (exchange.rank != 0 && names[0] != '\0') file_ = shm_open(names.data(), O_RDWR, 0600);
    if (file_ >= 0 && names[0] != '\0') {
      void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
      if (memory != MAP_FAILED) data_ = memory;
    }
    registered_ = data_ != nullptr && cudaHostRegister(data_, bytes_, cudaHostRegisterMapped) == cudaSuccess;
    if (!registered_) cudaGetLastError();
    const char mine = registered_ && usable ? 1 : 0;
    std::vector<char> all(static_cast<size_t>(exchange.ranks));
    exchange.all_gather(&mine, 1, all.data());
    if (exchange.rank == 0 && name[0] != '\0') shm_unlink(name);
    for (const char other : all) complete_ = complete_ && other != 0;
  }
  SharedArea(const SharedArea&) = delete;
  SharedArea& operator=(const SharedArea&) = delete;
  ~SharedArea() {
    if (registered_) cudaHostUnregister(data_);
    if (data_ != nullptr) munmap(data_, bytes_);
    if (file_ >= 0) close(file_);
  }
  // Every rank has it.
  bool complete() const { return complete_; }
  void* device_pointer() const {
    void* device = nullptr;
    cuda::check(cudaHostGetDevicePointer(&device, data_, 0), "cudaHostGetDevicePointer");
    return device;
  }

 private:
  size_t bytes_;
  int file_ = -1;
  void* data_ = nullptr;
  bool registered_ = false;
  bool complete_ = true;
};

class PushSum : public DeviceSum {
 public:
  PushSum(CudaBackend& backend, PushMemory memory, const RankExchange& exchange, uint64_t time_limit_ns)
      : backend_(backend), memory_(memory), rank_(exchange.rank), inbox_{backend, {}} {
    require_ranks(exchange);
    places_.rank = exchange.rank;
    places_.ranks = exchange.ranks;
    places_.time_limit_ns = time_limit_ns;
    // A rank that lacks memory says so in the exchanges below, which every rank enters.
    try {
      counts_ = backend.allocate(kBlocks * 4);
      if (memory == PushMemory::peer) inbox_.buffer = backend.take_mapped(kSenderBytes * exchange.ranks);
      void* status = nullptr;
      cuda::check(cudaMallocHost(&status, 64), "cudaMallocHost");
      status_.reset(static_cast<uint32_t*>(status));
      *status_ = 0;
      cuda::check(cudaHostGetDevicePointer(reinterpret_cast<void**>(&places_.status), status, 0), "cudaHostGetDevicePointer");
    } catch (const Error&) {
      status_.reset();
    }
    places_.counts = counts_.as<uint32_t>();
    if (memory == PushMemory::host)
      open_shared(exchange);
    else
      open_peers(exchange);
  }
  PushSum(const PushSum&) = delete;
  PushSum& operator=(const PushSum&) = delete;
  // Nothing of this rank writes to the others from here on.
  ~PushSum() override { cudaStreamSynchronize(backend_.stream()); }

  std::string name() const override { return memory_ == PushMemory::peer ? "p2p" : "host"; }

  void all_reduce_sum(float* data, int64_t count) override {
    for (int64_t first = 0; first < count; first += kPiece) {
      const int64_t length = count - first < kPiece ? count - first : kPiece;
      for_ranks([&](auto ranks) {
        launch("push_sum", push_sum_kernel<ranks()>, kBlocks, kThreads, 0, backend_.stream(), places_, data + first, length);
      });
    }
  }

  bool try_sum_and_norm(const RmsNormArgs& args) override {
    if (args.rows < 1 || args.rows > kBlocks || args.rows * args.dim > kPiece || 4 * args.dim > kStagedRowBytes) return false;
    check_norm(args);
    for_ranks([&](auto ranks) {
      launch("push_sum_norm", push_sum_norm_kernel<ranks()>, kBlocks, kRowThreads, static_cast<size_t>(4 * args.dim),
             backend_.stream(), places_, args, args.prepared.wanted());
    });
    return true;
  }

  void check() override {
    if (__atomic_load_n(status_.get(), __ATOMIC_ACQUIRE) == 0) return;
    throw Error(ErrorKind::peer,
                "a sum over ranks (" + name() + ") on rank " + std::to_string(rank_) + " gave up: another rank did not arrive");
  }

  void abort() override { __atomic_store_n(status_.get(), 2u, __ATOMIC_RELEASE); }

 private:
  // call(n) with the number of ranks as a constant.
  template <typename Call>
  void for_ranks(const Call& call) const {
    if (places_.ranks == 2) return call(std::integral_constant<int, 2>{});
    if (places_.ranks == 4) return call(std::integral_constant<int, 4>{});
    return call(std::integral_constant<int, kMaxPushRanks>{});
  }

  static void require_ranks(const RankExchange& exchange) {
    const int n = exchange.ranks;
    if (!exchange.one_node) throw Error(ErrorKind::environment, "the ranks are on several nodes");
    if (n < 2 || n > kMaxPushRanks || (n & (n - 1)) != 0)
      throw Error(ErrorKind::environment, std::to_string(n) + " ranks; it takes 2, 4 or 8");
  }

  // An area a sender; the others read it where it lies.
  void open_shared(const RankExchange& exchange) {
    shared_ = std::make_unique<SharedArea>(exchange, kSenderBytes * exchange.ranks, status_ != nullptr);
    if (!shared_->complete()) throw Error(ErrorKind::environment, "a rank has no shared host memory that its device can address");
    char* base = static_cast<char*>(shared_->device_pointer());
    for (int r = 0; r < exchange.ranks; ++r) {
      uint64_t* area = reinterpret_cast<uint64_t*>(base + r * kSenderBytes);
      if (r == rank_) places_.send[places_.targets++] = area;
      places_.receive[r] = r == rank_ ? nullptr : area;
    }
  }

  // An area a sender in the memory of every receiver.
  void open_peers(const RankExchange& exchange) {
    struct Handle {
      cudaIpcMemHandle_t memory;
      char usable;
    };
    Handle mine{};
    mine.usable = status_ && cudaIpcGetMemHandle(&mine.memory, inbox_.buffer.data()) == cudaSuccess ? 1 : 0;
    std::vector<Handle> all(static_cast<size_t>(exchange.ranks));
    exchange.all_gather(&mine, sizeof mine, all.data());
    // All have ended the sums of before, of which the inbox may hold packets. It is zero, which is no cookie, before the second
    // exchange, and nobody writes to it before that.
    bool opened = true;
    try {
      backend_.zero(inbox_.buffer.data(), inbox_.buffer.bytes());
      backend_.synchronize();
    } catch (const Error&) {
      opened = false;
    }
    for (int r = 0; r < exchange.ranks; ++r) {
      if (r == rank_) continue;
      void* peer = nullptr;
      const Handle& handle = all[static_cast<size_t>(r)];
      opened =
          opened && handle.usable != 0 && cudaIpcOpenMemHandle(&peer, handle.memory, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess;
      if (peer == nullptr) continue;
      opened_.emplace_back(peer);
      places_.send[places_.targets++] = reinterpret_cast<uint64_t*>(static_cast<char*>(peer) + rank_ * kSenderBytes);
      places_.receive[r] = reinterpret_cast<const uint64_t*>(inbox_.buffer.as<char>() + r * kSenderBytes);
    }
    cudaGetLastError();
    const char usable = opened ? 1 : 0;
    std::vector<char> everywhere(static_cast<size_t>(exchange.ranks));
    exchange.all_gather(&usable, 1, everywhere.data());
    for (const char other : everywhere) opened = opened && other != 0;
    if (!opened)
      throw Error(ErrorKind::environment,
                  "a device cannot reach the memory of another (no peer access, or devices hidden from it)");
  }

  CudaBackend& backend_;
  const PushMemory memory_;
  const int rank_;
  Places places_{};
  Buffer counts_;
  // Other ranks may have it mapped when this sum is gone.
  struct Inbox {
    CudaBackend& backend;
    Buffer buffer;
    ~Inbox() { backend.keep_mapped(std::move(buffer)); }
  } inbox_;
  struct FreeHost {
    void operator()(uint32_t* host) const { cudaFreeHost(host); }
  };
  std::unique_ptr<uint32_t, FreeHost> status_;
  std::unique_ptr<SharedArea> shared_;
  struct CloseMapping {
    void operator()(void* peer) const { cudaIpcCloseMemHandle(peer); }
  };
  std::vector<std::unique_ptr<void, CloseMapping>> opened_;
};

}  // namespace

std::unique_ptr<DeviceSum> make_push_sum(CudaBackend& backend, PushMemory memory, const RankExchange& exchange,
                                         uint64_t time_limit_ns) {
  return std::make_unique<PushSum>(backend, memory, exchange, time_limit_ns);
}

}  // namespace pq::cuda
