// A CUDA driver, runtime and cuBLAS without a GPU, loaded before the real ones (LD_PRELOAD): torch then finds one H200.
//
// Device memory is the host's. Launches compute nothing: they are checked as a driver checks them, and recorded. A
// tensor map holds the arguments that it was encoded from. Only what torch and Triton call here is defined; anything
// else reaches the real library, which answers that there is no driver.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kShared = 232448, kSharedWithoutOptIn = 49152;
std::mutex mutex;
std::map<CUfunction, std::vector<int>> parameter_sizes;  // told by stub_parameters
std::map<CUfunction, int> opted_in;
std::string launches;       // a line of JSON each
std::vector<void*> freed;  // kept until the launches are taken: until then no address is used twice
thread_local bool has_context = false;

void* new_handle() { return malloc(8); }

void* allocate(size_t bytes) { return aligned_alloc(512, (bytes + 511) / 512 * 512); }

cudaError_t touched() {  // runtime calls make the primary context current
  has_context = true;
  return cudaSuccess;
}

}  // namespace

// For the tests: the sizes of a kernel's parameters, and what has been launched since the last call.
API void stub_parameters(CUfunction function, const int* sizes, int count) {
  std::lock_guard<std::mutex> lock(mutex);
  parameter_sizes[function] = std::vector<int>(sizes, sizes + count);
}

API char* stub_launches() {
  std::lock_guard<std::mutex> lock(mutex);
  char* text = strdup(launches.c_str());
  launches.clear();
  for (void* memory : freed) free(memory);
  freed.clear();
  return text;
}

// Driver
API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void**) {
  if (!has_context) return CUDA_ERROR_INVALID_CONTEXT;
  std::lock_guard<std::mutex> lock(mutex);
  int shared = config->sharedMemBytes, threads = config->blockDimX;
  if (shared > kSharedWithoutOptIn && shared > opted_in[function]) return CUDA_ERROR_INVALID_VALUE;
  if (!config->gridDimX || !config->gridDimY || config->gridDimY > 65535 || threads > 1024) return CUDA_ERROR_INVALID_VALUE;
  char line[512];
  snprintf(line, sizeof line, "{\"kernel\": \"%s\", \"grid\": [%u, %u], \"threads\": %d, \"shared\": %d, \"stream\": %llu, ",
           reinterpret_cast<char*>(function), config->gridDimX, config->gridDimY, threads, shared,
           reinterpret_cast<unsigned long long>(config->hStream));
  launches += line;
  launches += "\"parameters\": \"";
  const std::vector<int>& sizes = parameter_sizes[function];
  for (size_t i = 0; i < sizes.size(); i++) {
    for (int byte = 0; byte < sizes[i]; byte++) {
      snprintf(line, sizeof line, "%02x", static_cast<unsigned char*>(parameters[i])[byte]);
      launches += line;
    }
    launches += " ";
  }
  launches += "\"}\n";
  return CUDA_SUCCESS;
}

// The products of cuBLAS, by the addresses of their operands and result, alpha, and what else is given as numbers
void record_product(const void* a, const void* b, const void* c, const void* alpha, std::initializer_list<int> numbers) {
  char line[256];
  snprintf(line, sizeof line, "{\"kernel\": \"cublas\", \"grid\": [], \"threads\": 0, \"shared\": 0, \"stream\": 0, ");
  std::lock_guard<std::mutex> lock(mutex);
  launches += line;
  launches += "\"parameters\": \"";
  for (const void* operand : {a, b, c}) {
    unsigned long long address = __builtin_bswap64(reinterpret_cast<unsigned long long>(operand));
    snprintf(line, sizeof line, "%016llx ", address);
    launches += line;
  }
  launches += std::to_string(*static_cast<const float*>(alpha)) + " ";
  for (int number : numbers) launches += std::to_string(number) + " ";
  launches += "\"}\n";
}

API int cublasLtMatmul(void*, void*, const void* alpha, const void* a, void*, const void* b, void*, const void*, const void*, void*,
                       void* d) {
  return record_product(a, b, d, alpha, {}), 0;
}

API int cublasGemmEx(void*, int transposed_a, int transposed_b, int m, int n, int k, const void* alpha, const void* a, int, int,
                     const void* b, int, int, const void* beta, void* c) {
  int of_c = static_cast<int>(*static_cast<const float*>(beta));
  return record_product(a, b, c, alpha, {transposed_a, transposed_b, m, n, k, of_c}), 0;
}

API CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                    const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                    const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                    CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const std::map<int, int> bytes = {{CU_TENSOR_MAP_DATA_TYPE_UINT8, 1},
                                           {CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2},
                                           {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2},
                                           {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4}};
  auto size = bytes.find(type);
  int span = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 1 << 30 : 16 << swizzle;  // 32, 64 or 128 bytes
  bool legal = rank >= 2 && rank <= 5 && size != bytes.end() && reinterpret_cast<size_t>(address) % 16 == 0 &&
               interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && fill == 0;
  for (cuuint32_t i = 0; legal && i < rank; i++)
    legal = sizes[i] > 0 && sizes[i] <= 1ull << 32 && box[i] > 0 && box[i] <= 256 && steps[i] == 1;
  for (cuuint32_t i = 0; legal && i < rank - 1; i++) legal = strides[i] % 16 == 0 && strides[i] < 1ull << 40;
  if (legal) legal = box[0] * size->second % 16 == 0 && static_cast<int>(box[0]) * size->second <= span;
  if (!legal) return CUDA_ERROR_INVALID_VALUE;
  cuuint64_t words[16] = {reinterpret_cast<cuuint64_t>(address),
                          static_cast<cuuint64_t>(type) | swizzle << 8 | promotion << 16 | rank << 24};
  for (cuuint32_t i = 0; i < rank; i++) {
    words[2 + i] = sizes[i];
    words[7 + i] = box[i];
    if (i < rank - 1) words[12 + i] = strides[i];
  }
  memset(map, 0, sizeof *map);
  memcpy(map, words, sizeof words);
  return CUDA_SUCCESS;
}

API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  // newer attributes are unknown to this driver, as to that of CUDA 13.0
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > kShared) return CUDA_ERROR_INVALID_VALUE;
  std::lock_guard<std::mutex> lock(mutex);
  opted_in[function] = value;
  return CUDA_SUCCESS;
}

API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

API CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  *function = reinterpret_cast<CUfunction>(strdup(name));
  return CUDA_SUCCESS;
}

API CUresult cuModuleLoadData(CUmodule* module, const void*) { return *module = static_cast<CUmodule>(new_handle()), CUDA_SUCCESS; }
API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
API CUresult cuGetErrorString(CUresult, const char** text) { return *text = "refused by the stub", CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return *context = reinterpret_cast<CUcontext>(1), CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) { return *flags = 0, *active = 1, CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext* context) { return *context = reinterpret_cast<CUcontext>(has_context ? 1 : 0), CUDA_SUCCESS; }
API CUresult cuCtxSetCurrent(CUcontext) { return has_context = true, CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute, CUdeviceptr p) { return *static_cast<CUdeviceptr*>(value) = p, CUDA_SUCCESS; }

// Runtime
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "a stub of the H200");
  found->major = 9;
  found->multiProcessorCount = 132;
  found->totalGlobalMem = 140ull << 30;
  found->warpSize = 32;
  found->maxThreadsPerBlock = 1024;
  found->maxThreadsPerMultiProcessor = 2048;
  found->sharedMemPerBlock = kSharedWithoutOptIn;
  found->sharedMemPerBlockOptin = kShared;
  found->sharedMemPerMultiprocessor = 233472;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  static const std::map<int, int> values = {{cudaDevAttrComputeCapabilityMajor, 9},
                                            {cudaDevAttrMultiProcessorCount, 132},
                                            {cudaDevAttrMaxSharedMemoryPerBlockOptin, kShared},
                                            {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472}};
  auto found = values.find(attribute);
  return *value = found == values.end() ? 0 : found->second, cudaSuccess;
}

API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  return static_cast<CUresult>(cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device));
}

API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

API cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
API cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
API cudaError_t cudaSetDevice(int) { return touched(); }
API cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API cudaError_t cudaMalloc(void** p, size_t bytes) { return *p = allocate(bytes), touched(); }
API cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { return *p = allocate(bytes), touched(); }
API cudaError_t cudaFree(void* p) {
  std::lock_guard<std::mutex> lock(mutex);
  return freed.push_back(p), touched();
}
API cudaError_t cudaFreeHost(void* p) { return free(p), touched(); }
API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) { return *free = *total = 140ull << 30, cudaSuccess; }
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) { return memcpy(to, from, bytes), touched(); }
API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { return memset(to, value, bytes), touched(); }
API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) { return *status = cudaStreamCaptureStatusNone, cudaSuccess; }
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*, cudaGraph_t*,
                                         const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, cudaSuccess; }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return *s = static_cast<cudaStream_t>(new_handle()), touched(); }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return *e = static_cast<cudaEvent_t>(new_handle()), touched(); }
API const char* cudaGetErrorString(cudaError_t) { return "refused by the stub"; }
API const char* cudaGetErrorName(cudaError_t) { return "stub"; }
