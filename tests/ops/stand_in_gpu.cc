// A CUDA driver, runtime and libraries (cuBLAS, cuDNN, cuRAND, cuFFT, cuSPARSE) without a device: memory is the host's,
// a launch is checked for what a device would refuse and then does nothing. With it, everything that Jittor and jseg
// compile and call on a machine with a GPU compiles and is called on one without; the numbers are meaningless. Built
// once for each library's name by test_stand_in_gpu.py.
#include <cuda_runtime_api.h>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

// ---- driver: what jseg.runtime and Jittor ask before they load anything ---------------------------------------------
API int cuInit(unsigned) { return 0; }
API int cuDriverGetVersion(int* version) { return *version = CUDART_VERSION, 0; }
API int cuDeviceGetCount(int* count) { return *count = 1, 0; }
API int cuDeviceGet(int* device, int index) { return *device = index, 0; }
API int cuDeviceGetName(char* text, int size, int) { return snprintf(text, size_t(size), "stand-in"), 0; }
// sm_90
API int cuDeviceGetAttribute(int* value, int which, int) { return *value = which == 75 ? 9 : which == 76 ? 0 : 1, 0; }
API int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = size_t(8) << 30, 0; }

constexpr unsigned PROCESSORS = 132, BLOCKS_EACH = 4;   // of the latter, on each of the former

// ---- runtime --------------------------------------------------------------------------------------------------------
API cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
API cudaError_t cudaSetDevice(int) { return cudaSuccess; }
API cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in");
    p->major = 9, p->multiProcessorCount = int(PROCESSORS), p->totalGlobalMem = size_t(8) << 30,
    p->maxThreadsPerBlock = 1024, p->warpSize = 32;
    p->sharedMemPerBlock = 48 << 10, p->unifiedAddressing = p->managedMemory = p->concurrentManagedAccess = 1;
    return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* unused, size_t* total) {
    return *unused = size_t(6) << 30, *total = size_t(8) << 30, cudaSuccess;
}
API cudaError_t cudaMalloc(void** p, size_t n) {
    return posix_memalign(p, 256, n ? n : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}
API cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { return cudaMalloc(p, n); }
API cudaError_t cudaMallocHost(void** p, size_t n) { return cudaMalloc(p, n); }
API cudaError_t cudaFree(void* p) { return free(p), cudaSuccess; }
API cudaError_t cudaFreeHost(void* p) { return free(p), cudaSuccess; }
API cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
    return memmove(to, from, n), cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) {
    return memmove(to, from, n), cudaSuccess;
}
API cudaError_t cudaMemset(void* to, int value, size_t n) { return memset(to, value, n), cudaSuccess; }
API cudaError_t cudaMemsetAsync(void* to, int value, size_t n, cudaStream_t) {
    return memset(to, value, n), cudaSuccess;
}

// What was launched since the start: how often, and the mangled name of each one's device function.
static std::map<const void*, std::string>& functions() {
    static std::map<const void*, std::string> known;
    return known;
}
static std::vector<std::string> launched;
API int stand_in_launches() { return int(launched.size()); }
API const char* stand_in_launched(int i) { return launched[size_t(i)].c_str(); }
API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t) {
    launched.push_back(functions()[function]);
    const bool good = grid.x && grid.x <= 0x7fffffffu && grid.y && grid.y <= 65535 && grid.z && grid.z <= 65535 &&
                      block.x && block.y && block.z && block.z <= 64 && size_t(block.x) * block.y * block.z <= 1024 &&
                      shared <= 48 << 10;
    if (good) return cudaSuccess;
    fprintf(stderr, "REFUSED LAUNCH: grid %u x %u x %u, block %u x %u x %u, %zu bytes\n", grid.x, grid.y, grid.z,
            block.x, block.y, block.z, shared);
    return cudaErrorInvalidConfiguration;
}
API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** a, size_t shared,
                                            cudaStream_t stream) {
    const cudaError_t error = cudaLaunchKernel(function, grid, block, a, shared, stream);
    if (error != cudaSuccess || grid.x * grid.y * grid.z <= PROCESSORS * BLOCKS_EACH) return error;
    fprintf(stderr, "REFUSED LAUNCH: %u blocks together\n", grid.x * grid.y * grid.z);
    return cudaErrorCooperativeLaunchTooLarge;
}
static thread_local struct { dim3 grid, block; size_t shared; cudaStream_t stream; } pushed;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    return pushed = {grid, block, shared, stream}, 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared,
    *static_cast<cudaStream_t*>(stream) = pushed.stream;
    return cudaSuccess;
}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    return *kernel = (cudaKernel_t)function, cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 grid, dim3 block, void** a, size_t shared,
                                   cudaStream_t stream) {
    return cudaLaunchKernel((const void*)f, grid, block, a, shared, stream);
}
API void** __cudaRegisterFatBinary(void*) { static void* handle[4]; return handle; }
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*,
                                int*) {
    functions()[function] = name;
}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API char __cudaInitModule(void**) { return 0; }
API cudaError_t cudaGetLastError() { return cudaSuccess; }
API cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
API const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }
API const char* cudaGetErrorName(cudaError_t) { return "stand-in"; }
API cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
API cudaError_t cudaDeviceReset() { return cudaSuccess; }
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    return *value = which == cudaDevAttrMultiProcessorCount ? int(PROCESSORS) : 1, cudaSuccess;
}
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
    memset(a, 0, sizeof *a);
    return a->maxThreadsPerBlock = 1024, a->ptxVersion = a->binaryVersion = 90, cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                       unsigned) {
    return *blocks = int(BLOCKS_EACH), cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    return *blocks = int(BLOCKS_EACH), cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
    return function(data), cudaSuccess;
}

struct Event {
    std::chrono::steady_clock::time_point at;
};
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = (cudaEvent_t) new Event, cudaSuccess; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { delete (Event*)event; return cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    if (event) ((Event*)event)->at = std::chrono::steady_clock::now();
    return cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
    return *ms = std::chrono::duration<float, std::milli>(((Event*)to)->at - ((Event*)from)->at).count(), cudaSuccess;
}

// ---- libraries: their calls succeed ---------------------------------------------------------------------------------
#define SUCCEEDS(name) API int name() { return 0; }
#define MAKES(name) API int name(void** handle) { return *handle = calloc(1, 64), 0; }
#define NO_WORKSPACE(name) API int name(void*, void*, void*, void*, void*, int, size_t* bytes) { return *bytes = 0, 0; }
// One result of zeros: {algorithm, status, time, memory, determinism, math, reserved[3]}.
#define CHOOSES(name)                                                                \
    API int name(void*, void*, void*, void*, void*, int, int* found, char* result) { \
        return *found = 1, memset(result, 0, 48), 0;                                 \
    }
#define TRIES(name)                                                                                                 \
    API int name(void*, void*, const void*, void*, const void*, void*, void*, void*, int, int* found, char* result, \
                 void*, size_t) {                                                                                   \
        return *found = 1, memset(result, 0, 48), 0;                                                                \
    }

MAKES(cublasCreate_v2)
SUCCEEDS(cublasDestroy_v2) SUCCEEDS(cublasSgemm_v2) SUCCEEDS(cublasGemmEx) SUCCEEDS(cublasGemmStridedBatchedEx)
    MAKES(curandCreateGenerator) SUCCEEDS(curandDestroyGenerator) SUCCEEDS(curandSetPseudoRandomGeneratorSeed)
        SUCCEEDS(curandGenerateUniform) SUCCEEDS(curandGenerateUniformDouble) SUCCEEDS(curandGenerateNormal) SUCCEEDS(
            curandGenerateNormalDouble) MAKES(cufftCreate) SUCCEEDS(cufftDestroy) SUCCEEDS(cufftExecC2C)
            SUCCEEDS(cufftExecZ2Z) SUCCEEDS(cufftPlanMany) SUCCEEDS(cufftSetStream) MAKES(cusparseCreate) MAKES(
                cusparseCreateCoo) MAKES(cusparseCreateCsr) MAKES(cusparseCreateDnMat) SUCCEEDS(cusparseDestroy)
                SUCCEEDS(cusparseDestroyDnMat) SUCCEEDS(cusparseDestroySpMat) SUCCEEDS(cusparseSpMM)
                    SUCCEEDS(cusparseSpMM_bufferSize) MAKES(cudnnCreate) MAKES(cudnnCreateConvolutionDescriptor) MAKES(
                        cudnnCreateDropoutDescriptor) MAKES(cudnnCreateFilterDescriptor) MAKES(cudnnCreateRNNDescriptor)
                        MAKES(cudnnCreateTensorDescriptor) SUCCEEDS(cudnnDestroy) SUCCEEDS(
                            cudnnDestroyConvolutionDescriptor) SUCCEEDS(cudnnDestroyDropoutDescriptor)
                            SUCCEEDS(cudnnDestroyFilterDescriptor) SUCCEEDS(cudnnDestroyRNNDescriptor)
                                SUCCEEDS(cudnnDestroyTensorDescriptor) SUCCEEDS(cudnnSetConvolutionGroupCount) SUCCEEDS(
                                    cudnnSetConvolutionMathType) SUCCEEDS(cudnnSetConvolutionNdDescriptor)
                                    SUCCEEDS(cudnnSetDropoutDescriptor) SUCCEEDS(cudnnSetFilterNdDescriptor) SUCCEEDS(
                                        cudnnSetTensorNdDescriptor) SUCCEEDS(cudnnDropoutGetStatesSize)
                                        SUCCEEDS(cudnnConvolutionForward) SUCCEEDS(cudnnConvolutionBackwardData)
                                            SUCCEEDS(cudnnConvolutionBackwardFilter)
                                                NO_WORKSPACE(cudnnGetConvolutionForwardWorkspaceSize) NO_WORKSPACE(
                                                    cudnnGetConvolutionBackwardDataWorkspaceSize)
                                                    NO_WORKSPACE(cudnnGetConvolutionBackwardFilterWorkspaceSize)
                                                        CHOOSES(cudnnGetConvolutionForwardAlgorithm_v7) CHOOSES(
                                                            cudnnGetConvolutionBackwardDataAlgorithm_v7)
                                                            CHOOSES(cudnnGetConvolutionBackwardFilterAlgorithm_v7)
                                                                TRIES(cudnnFindConvolutionForwardAlgorithmEx) TRIES(
                                                                    cudnnFindConvolutionBackwardDataAlgorithmEx)
                                                                    TRIES(cudnnFindConvolutionBackwardFilterAlgorithmEx)
                                                                        API const char* cudnnGetErrorString(int) {
    return "an error of the stand-in";
}
