// The emulated CUDA runtime: device memory between canaries, and a stream that runs everything at once or records it.
#include <cuda_runtime.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace {

#if defined(__SANITIZE_ADDRESS__)
// The sanitizer sees every byte beyond an allocation, reads too.
constexpr size_t kCanary = 0;
#else
constexpr size_t kCanary = 256;
#endif
constexpr unsigned char kPattern = 0xa5;
constexpr int kMultiprocessors = 4;
constexpr int kRuntime = 13000;

int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

// A small card: tests of what does not fit are quick.
const int64_t kTotal = setting("PQ_SIMT_MEMORY", int64_t{2} << 30);
const int64_t kRoom = std::min(kTotal, setting("PQ_SIMT_ROOM", kTotal));
std::atomic<bool> room_is_known{false};
const int kDevices = static_cast<int>(setting("PQ_SIMT_DEVICES", 2));
const int kCapability = static_cast<int>(setting("PQ_SIMT_CAPABILITY", 86));
const int kDriver = static_cast<int>(setting("PQ_SIMT_DRIVER", kRuntime));

// With PQ_SIMT_IPC other processes can open larger buffers, which lie in files then, a page of canaries on either side.
const bool kShared = setting("PQ_SIMT_IPC", 0) != 0;
constexpr size_t kSharedFrom = 64 << 10;
constexpr size_t kPage = 4096;
size_t file_bytes(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage + 2 * kPage; }

struct Allocation {
  size_t bytes;
  int file;  // -1: on the heap
};
std::mutex mutex;
std::map<char*, Allocation>& allocations() {
  static std::map<char*, Allocation> all;
  return all;
}
int64_t used = 0;
// Allocations that an open handle refers to, and how many were freed all the same.
std::map<void*, int> mapped;
int64_t freed_mapped = 0;
// Of other processes, and their bytes.
std::map<void*, size_t> foreign;
thread_local cudaError_t last = cudaSuccess;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

// The stream that this thread captures. Meanwhile it may launch and copy on it, and neither allocate nor wait: that is an error,
// and the end of the capture.
thread_local cudaStream_t captured = nullptr;
std::atomic<int64_t> graphs_launched{0};
std::atomic<int64_t> graph_bytes{0};  // of each
std::atomic<int64_t> alive{0};
std::atomic<bool> graphs_refused{false};
std::atomic<int64_t> graph_memory{0};  // the most they took

bool captures() {
  if (captured == nullptr) return false;
  captured->invalid = true;
  return true;
}

void check_canary(const char* data, size_t bytes) {
  for (size_t i = 0; i < kCanary; ++i) {
    if (static_cast<unsigned char>(data[-1 - static_cast<ptrdiff_t>(i)]) != kPattern ||
        static_cast<unsigned char>(data[bytes + i]) != kPattern) {
      std::fprintf(stderr, "simt: a kernel or copy wrote %zu bytes beyond an allocation of %zu bytes\n", i, bytes);
      std::abort();
    }
  }
}

}  // namespace

namespace simt {

void check_canaries() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [data, allocation] : allocations()) check_canary(data, allocation.bytes);
}
int64_t freed_while_mapped() {
  const std::lock_guard<std::mutex> lock(mutex);
  return freed_mapped;
}
void set_graph_bytes(int64_t bytes) {
  graph_bytes = bytes;
  graph_memory = 0;
}
int64_t graphs_alive() { return alive; }
void refuse_graphs(bool refuse) { graphs_refused = refuse; }
int64_t graph_launches() { return graphs_launched.load(); }
int64_t memory_total() { return kTotal; }
int64_t memory_used() {
  const std::lock_guard<std::mutex> lock(mutex);
  return used;
}

bool inside_allocation(const void* data, size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  char* first = static_cast<char*>(const_cast<void*>(data));
  auto found = allocations().upper_bound(first);
  if (found == allocations().begin()) return false;
  --found;
  const size_t whole = found->second.bytes;
  return bytes <= whole && first - found->first <= static_cast<ptrdiff_t>(whole - bytes);
}

}  // namespace simt

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default:
      return "invalid argument";
  }
}
cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (kDriver < kRuntime) return remember(cudaErrorInsufficientDriver);
  if (kDevices == 0) return remember(cudaErrorNoDevice);
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = kDriver;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntime;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return remember(device >= 0 && device < kDevices ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= kDevices) return remember(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated");
  properties->uuid.bytes[0] = 'e';
  properties->uuid.bytes[15] = static_cast<char>(device);
  properties->major = kCapability / 10;
  properties->minor = kCapability % 10;
  properties->multiProcessorCount = kMultiprocessors;
  properties->totalGlobalMem = static_cast<size_t>(kTotal);
  properties->sharedMemPerBlockOptin = 99 << 10;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = static_cast<size_t>(kTotal);
  *free = static_cast<size_t>(std::max<int64_t>(0, (room_is_known ? kRoom : kTotal) - simt::memory_used() - graph_memory));
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (captures()) return remember(cudaErrorStreamCaptureUnsupported);
  if (bytes > static_cast<size_t>(kTotal) || simt::memory_used() + static_cast<int64_t>(bytes) > kRoom) {
    room_is_known = true;
    return remember(cudaErrorMemoryAllocation);
  }
  void* block = nullptr;
  char* memory = nullptr;
  int file = -1;
  if (kShared && bytes >= kSharedFrom) {
    file = memfd_create("simt", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(file_bytes(bytes))) != 0) return remember(cudaErrorMemoryAllocation);
    block = mmap(nullptr, file_bytes(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (block == MAP_FAILED) return remember(cudaErrorMemoryAllocation);
    memory = static_cast<char*>(block) + kPage;
  } else {
    if (posix_memalign(&block, 256, bytes + 2 * kCanary) != 0) return remember(cudaErrorMemoryAllocation);
    memory = static_cast<char*>(block) + kCanary;
  }
  std::memset(memory - kCanary, kPattern, kCanary);
  std::memset(memory, 0xff, bytes);
  std::memset(memory + bytes, kPattern, kCanary);
  *data = memory;
  const std::lock_guard<std::mutex> lock(mutex);
  allocations()[memory] = {bytes, file};
  used += static_cast<int64_t>(bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  if (captures()) return remember(cudaErrorStreamCaptureUnsupported);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = allocations().find(static_cast<char*>(data));
  if (found == allocations().end()) {
    std::fprintf(stderr, "simt: cudaFree of what cudaMalloc did not give\n");
    std::abort();
  }
  const auto [bytes, file] = found->second;
  freed_mapped += mapped.count(data) > 0 ? 1 : 0;
  check_canary(found->first, bytes);
  used -= static_cast<int64_t>(bytes);
  if (file >= 0) {
    munmap(found->first - kPage, file_bytes(bytes));
    close(file);
  } else {
    std::free(found->first - kCanary);
  }
  allocations().erase(found);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** data, size_t bytes) {
  if (captures()) return remember(cudaErrorStreamCaptureUnsupported);
  *data = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return *data != nullptr ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* data) {
  if (captures()) return remember(cudaErrorStreamCaptureUnsupported);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  simt::submit(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  simt::submit(stream, [=] { std::memset(data, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new simt::Stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  cudaError_t result = cudaErrorNotReady;
  while ((result = cudaStreamQuery(stream)) == cudaErrorNotReady) std::this_thread::yield();
  return result;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->capturing || captured != nullptr) return remember(cudaErrorInvalidValue);
  captured = stream;
  stream->capturing = true;
  stream->invalid = false;
  stream->captured.work.clear();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  captured = nullptr;
  stream->capturing = false;
  *graph = nullptr;
  if (stream->invalid) return remember(cudaErrorStreamCaptureInvalidated);
  *graph = new simt::Graph(std::move(stream->captured));
  stream->captured.work.clear();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new simt::Graph(*graph);
  graph_memory = std::max<int64_t>(graph_memory, ++alive * graph_bytes);
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  return remember(graphs_refused ? cudaErrorMemoryAllocation : cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  ++graphs_launched;
  for (const simt::Work& work : exec->work) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  --alive;
  delete exec;
  return cudaSuccess;
}

// A stream that is being captured cannot be waited for.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (stream == nullptr || !stream->capturing)
    return stream != nullptr && stream->busy && stream->busy() ? cudaErrorNotReady : cudaSuccess;
  stream->invalid = true;
  return remember(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new uint64_t(0);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  simt::submit(stream, [event] { *event = simt::clock_ns(); });
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (*from == 0 || *to == 0) return remember(cudaErrorInvalidValue);
  *milliseconds = static_cast<float>(1e-6 * static_cast<double>(*to - *from));
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = kMultiprocessors;
  return cudaSuccess;
}
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* data) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = allocations().find(static_cast<char*>(data));
  if (found == allocations().end()) return remember(cudaErrorInvalidValue);
  *handle = {data, getpid(), found->second.file, found->second.bytes};
  return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void** data, cudaIpcMemHandle_t handle, unsigned) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (handle.process == getpid()) {
    *data = handle.data;
    ++mapped[handle.data];
    return cudaSuccess;
  }
  const std::string path = "/proc/" + std::to_string(handle.process) + "/fd/" + std::to_string(handle.file);
  const int file = handle.file < 0 ? -1 : open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return remember(cudaErrorMapBufferObjectFailed);
  void* block = mmap(nullptr, file_bytes(handle.bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (block == MAP_FAILED) return remember(cudaErrorMapBufferObjectFailed);
  *data = static_cast<char*>(block) + kPage;
  foreign[*data] = file_bytes(handle.bytes);
  return cudaSuccess;
}
cudaError_t cudaIpcCloseMemHandle(void* data) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto other = foreign.find(data); other != foreign.end()) {
    munmap(static_cast<char*>(data) - kPage, other->second);
    foreign.erase(other);
    return cudaSuccess;
  }
  const auto found = mapped.find(data);
  if (found == mapped.end()) return remember(cudaErrorInvalidValue);
  if (--found->second == 0) mapped.erase(found);
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void*, size_t, unsigned) {
  return captures() ? remember(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}
