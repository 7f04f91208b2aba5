// A stand-in for the CUDA runtime. Loaded before libcudart with LD_PRELOAD, it lets PyTorch's whole host side for GPUs
// run on a machine without one: allocator, streams, autograd's thread for the device, graph capture, fused optimizers.
//
// Kernels do nothing, copies copy. The rules of stream capture are enforced as the headers of CUDA 13 state them. Every
// operation is counted by name. A copy to the host on one stream is reported as a race if another stream of the same
// thread has work that nobody waited for.
//
// The environment decides what goes wrong:
//   FAKECUDA_GPUS=n       so many devices (default 1)
//   FAKECUDA_MEMORY=n     bytes of each device (default 80 GiB)
//   FAKECUDA_DIE_AT=n     from the n-th operation on, everything fails with error 700, as after an illegal access
//   FAKECUDA_DIED=path    a file that the first process to die creates; no other one dies
//   FAKECUDA_FAIL_AT=n    the n-th operation of a capture fails
//   FAKECUDA_FAILURES=n   in so many captures (default: in all)
//   FAKECUDA_DUMP=path    the names of the operations of the last captured graph, a line each
#define _GNU_SOURCE
#include "fake.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST_STREAMS = 1024, MOST_CAPTURES = 64, MOST_NAMES = 8192, MOST_BLOCKS = 65536, MOST_GPUS = 8 };

typedef struct Operation {
    const char *name;
    struct Operation *next;
} Operation;

typedef struct Graph {
    Operation *first, *last;
    unsigned long size;
} Graph;

typedef struct Capture {
    int mode, is_active, is_broken;
    long thread;
    unsigned long long number;
    Graph graph;
} Capture;

// `queued` and `done` count operations; `waited[n]` is how many of stream n had to be done before this one continues.
typedef struct Stream {
    int number, device, priority;
    Capture *capture;
    unsigned long long queued, done, graphs_queued, graphs_done;
    long thread;
    unsigned long long waited[MOST_STREAMS];
} Stream;

typedef struct Event {
    Stream *stream;
    unsigned long long queued, graphs_queued;
    int is_captured;
    double milliseconds;
} Event;

typedef struct Block {
    char *start;
    size_t size;
    int device; // -1 on the host
} Block;

typedef struct Count {
    const char *name;
    unsigned long run, captured;
} Count;

static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }
static cudaError_t unlocked(cudaError_t error) {
    unlock();
    return error;
}

static Stream streams[MOST_STREAMS]; // the first of all is the default one
static int stream_count = 1;
static Capture *captures[MOST_CAPTURES]; // those that are active
static int capture_count;
static Count counts[MOST_NAMES];
static int name_count;
static Block blocks[MOST_BLOCKS];
static int block_count;
static size_t in_use[MOST_GPUS];
static unsigned long long operations;
static __thread cudaError_t last_error;
static __thread int thread_mode = cudaStreamCaptureModeGlobal;
static __thread int current_device;

static struct {
    unsigned long stream_waits, device_waits, event_waits, to_device, to_host, mallocs, frees, replays, captures, races,
        violations, most_ahead;
} total;

static long thread(void) { return syscall(SYS_gettid); }

static cudaError_t fail(cudaError_t error) { return last_error = error; }

static unsigned long long setting(const char *name, unsigned long long otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, 0, 10) : otherwise;
}

static Stream *stream_of(cudaStream_t stream) {
    if (stream == 0 || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return &streams[0];
    return (Stream *)stream;
}

static Capture *capture_of(Stream *stream) {
    return stream->capture && stream->capture->is_active ? stream->capture : 0;
}

static Count *count_of(const char *name) {
    for (int i = 0; i < name_count; i++)
        if (counts[i].name == name || !strcmp(counts[i].name, name)) return &counts[i];
    if (name_count == MOST_NAMES) return &counts[0];
    counts[name_count].name = name;
    return &counts[name_count++];
}

// ---- What goes wrong

// The environment's settings, which a test may change.
static unsigned long long die_at, fail_at, failures;
static const char *died;
static const char *died;
__attribute__((constructor)) static void read_settings(void) {
    died = getenv("FAKECUDA_DIED");
    die_at = setting("FAKECUDA_DIE_AT", UINT64_MAX);
    fail_at = setting("FAKECUDA_FAIL_AT", UINT64_MAX);
    failures = setting("FAKECUDA_FAILURES", UINT64_MAX);
}
EXPORT void fakecuda_die_after(unsigned long long count) { die_at = operations + count; }
EXPORT void fakecuda_fail_at(unsigned long long number, unsigned long long times) {
    fail_at = number;
    failures = times;
}
static int is_dead(void) {
    static int is_first;
    if (operations < die_at) return 0;
    if (died && !is_first) is_first = open(died, O_CREAT | O_EXCL, 0644) >= 0;
    if (died && !is_first) die_at = UINT64_MAX;
    return operations >= die_at;
}
static int must_fail(Capture *capture) { return capture->graph.size + 1 == fail_at && failures && failures--; }

static cudaError_t violate(const char *call, Capture *capture) {
    total.violations++;
    capture->is_broken = 1;
    fprintf(stderr, "[fakecuda] %s in thread %ld breaks the capture of thread %ld\n", call, thread(), capture->thread);
    return fail(cudaErrorStreamCaptureUnsupported);
}

// A call that is potentially unsafe, as described at cudaThreadExchangeStreamCaptureMode.
static cudaError_t check_unsafe(const char *call) {
    for (int i = 0; i < capture_count; i++) {
        Capture *capture = captures[i];
        int is_mine = capture->thread == thread() && capture->mode != cudaStreamCaptureModeRelaxed;
        int is_global = thread_mode == cudaStreamCaptureModeGlobal && capture->mode == cudaStreamCaptureModeGlobal;
        if (thread_mode != cudaStreamCaptureModeRelaxed && (is_mine || is_global)) return violate(call, capture);
    }
    return cudaSuccess;
}

// ---- Kernels

cudaError_t fake_launch(cudaStream_t handle, const char *name) {
    lock();
    Stream *stream = stream_of(handle);
    Capture *capture = capture_of(stream);
    operations++;
    if (is_dead()) return unlocked(fail(cudaErrorIllegalAddress));
    if (!capture) {
        stream->queued++;
        stream->thread = thread();
        count_of(name)->run++;
        return unlocked(cudaSuccess);
    }
    if (capture->is_broken) return unlocked(fail(cudaErrorStreamCaptureInvalidated));
    if (must_fail(capture)) {
        capture->is_broken = 1;
        return unlocked(fail(cudaErrorStreamCaptureUnsupported));
    }
    Operation *operation = calloc(1, sizeof *operation);
    operation->name = name;
    if (capture->graph.last)
        capture->graph.last->next = operation;
    else
        capture->graph.first = operation;
    capture->graph.last = operation;
    capture->graph.size++;
    count_of(name)->captured++;
    return unlocked(cudaSuccess);
}

typedef struct Function {
    const void *address;
    const char *name;
} Function;
static Function *functions;
static size_t function_count, function_room;
static int is_sorted;

static int compare(const void *one, const void *other) {
    const char *a = ((const Function *)one)->address, *b = ((const Function *)other)->address;
    return (a > b) - (a < b);
}
static const char *name_of(const void *address) {
    lock();
    if (!is_sorted) qsort(functions, function_count, sizeof *functions, compare);
    is_sorted = 1;
    Function wanted = {address, 0};
    Function *found = bsearch(&wanted, functions, function_count, sizeof *functions, compare);
    unlock();
    return found ? found->name : "unknown kernel";
}

EXPORT void **__cudaRegisterFatBinary(void *binary) { return calloc(1, sizeof(void *)); }
EXPORT void __cudaRegisterFatBinaryEnd(void **handle) {}
EXPORT void __cudaUnregisterFatBinary(void **handle) {}
EXPORT void __cudaRegisterVar(void **h, char *host, char *device, const char *n, int e, size_t s, int c, int g) {}
EXPORT void __cudaRegisterFunction(void **h, const char *address, char *device, const char *name, int limit, void *t,
                                   void *b, void *bd, void *gd, int *w) {
    lock();
    if (function_count == function_room) {
        function_room = function_room ? 2 * function_room : 65536;
        functions = realloc(functions, function_room * sizeof *functions);
    }
    functions[function_count++] = (Function){address, name};
    is_sorted = 0;
    unlock();
}

// The compiler puts these two around every launch: the first keeps what the second returns.
static __thread struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} pending[16];
static __thread int pending_count;
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    pending[pending_count].grid = grid;
    pending[pending_count].block = block;
    pending[pending_count].shared = shared;
    pending[pending_count++].stream = stream;
    return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    pending_count--;
    *grid = pending[pending_count].grid;
    *block = pending[pending_count].block;
    *shared = pending[pending_count].shared;
    *(cudaStream_t *)stream = pending[pending_count].stream;
    return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *address) {
    *kernel = (cudaKernel_t)address;
    return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t shared, cudaStream_t stream) {
    return fake_launch(stream, name_of(f));
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t shared, cudaStream_t stream) {
    return fake_launch(stream, name_of((const void *)k));
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **a) {
    return fake_launch(config->stream, name_of(f));
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    cudaError_t error = fake_launch(stream, "[host function]");
    if (!error && !capture_of(stream_of(stream))) function(data);
    return error;
}
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *f) {
    *found =
        (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .numRegs = 32, .ptxVersion = 90, .binaryVersion = 90};
    return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int value) { return cudaSuccess; }
EXPORT cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int device) {
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *f, int block, size_t shared) {
    *count = 2048 / (block < 64 ? 64 : block);
    if (*count < 1) *count = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *f, int block,
                                                                          size_t shared, unsigned flags) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(count, f, block, shared);
}

// ---- Devices: each says that it is an H100

static int device_count(void) { return setting("FAKECUDA_GPUS", 1); }
static size_t device_memory(void) { return setting("FAKECUDA_MEMORY", 80ull << 30); }

EXPORT cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_count()) return fail(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }
EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    *found = (struct cudaDeviceProp){.name = "Fake H100",
                                     .totalGlobalMem = device_memory(),
                                     .sharedMemPerBlock = 49152,
                                     .regsPerBlock = 65536,
                                     .warpSize = 32,
                                     .maxThreadsPerBlock = 1024,
                                     .maxThreadsDim = {1024, 1024, 64},
                                     .maxGridSize = {2147483647, 65535, 65535},
                                     .totalConstMem = 65536,
                                     .major = 9,
                                     .textureAlignment = 512,
                                     .multiProcessorCount = 132,
                                     .concurrentKernels = 1,
                                     .l2CacheSize = 50 << 20,
                                     .maxThreadsPerMultiProcessor = 2048,
                                     .sharedMemPerMultiprocessor = 233472,
                                     .regsPerMultiprocessor = 65536,
                                     .sharedMemPerBlockOptin = 232448,
                                     .asyncEngineCount = 3,
                                     .unifiedAddressing = 1,
                                     .managedMemory = 1,
                                     .memoryBusWidth = 5120,
                                     .maxBlocksPerMultiProcessor = 32,
                                     .pciDeviceID = device};
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp facts;
    cudaGetDeviceProperties(&facts, device);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = facts.major;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = facts.multiProcessorCount;
        break;
    case cudaDevAttrMaxThreadsPerBlock:
        *value = facts.maxThreadsPerBlock;
        break;
    case cudaDevAttrWarpSize:
        *value = facts.warpSize;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = facts.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = facts.sharedMemPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = facts.sharedMemPerBlockOptin;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = facts.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxGridDimX:
        *value = facts.maxGridSize[0];
        break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        *value = facts.maxGridSize[1];
        break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
        *value = facts.maxThreadsDim[0];
        break;
    case cudaDevAttrMaxBlockDimZ:
        *value = facts.maxThreadsDim[2];
        break;
    case cudaDevAttrL2CacheSize:
        *value = facts.l2CacheSize;
        break;
    case cudaDevAttrUnifiedAddressing:
        *value = 1;
        break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
        *value = facts.maxBlocksPerMultiProcessor;
        break;
    default:
        *value = 0;
    }
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "0000:00:%02d.0", device);
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int one, int other) {
    *can = 0;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int device, unsigned flags) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *lowest, int *highest) {
    *lowest = 0;
    *highest = -5;
    return cudaSuccess;
}
// The driver refuses to wait for a device on which a stream is being captured, whichever thread asks.
EXPORT cudaError_t cudaDeviceSynchronize(void) {
    lock();
    total.device_waits++;
    if (is_dead()) return unlocked(fail(cudaErrorIllegalAddress));
    if (capture_count) return unlocked(violate("cudaDeviceSynchronize", captures[0]));
    for (int i = 0; i < stream_count; i++) {
        streams[i].done = streams[i].queued;
        streams[i].graphs_done = streams[i].graphs_queued;
    }
    return unlocked(cudaSuccess);
}
EXPORT cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

EXPORT cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }
EXPORT const char *cudaGetErrorName(cudaError_t error) {
    static __thread char text[32];
    snprintf(text, sizeof text, "cudaError%d", error);
    return text;
}
EXPORT const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
        return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureWrongThread:
        return "capture ended by another thread";
    default:
        return cudaGetErrorName(error);
    }
}

// ---- Memory: that of a device is memory of the host, which is zero until it is written

static Block *find_block(const void *pointer) {
    for (int i = 0; i < block_count; i++)
        if (blocks[i].start && (char *)pointer >= blocks[i].start && (char *)pointer < blocks[i].start + blocks[i].size)
            return &blocks[i];
    return 0;
}
static int is_on_device(const void *pointer) {
    Block *block = find_block(pointer);
    return block && block->device >= 0;
}
static cudaError_t allocate(void **pointer, size_t size, int device) {
    lock();
    if (is_dead()) return unlocked(fail(cudaErrorIllegalAddress));
    cudaError_t error = check_unsafe(device >= 0 ? "cudaMalloc" : "cudaMallocHost");
    if (error) return unlocked(error);
    if (device >= 0 && in_use[device] + size > device_memory()) return unlocked(fail(cudaErrorMemoryAllocation));
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, i = 0;
    *pointer = mmap(0, size ? size : 1, PROT_READ | PROT_WRITE, flags, -1, 0);
    while (i < block_count && blocks[i].start) i++;
    if (i == block_count) block_count++;
    blocks[i] = (Block){*pointer, size, device};
    if (device >= 0) in_use[device] += size, total.mallocs++;
    return unlocked(cudaSuccess);
}
static cudaError_t release(void *pointer) {
    lock();
    Block *block = pointer ? find_block(pointer) : 0;
    if (block) {
        munmap(block->start, block->size ? block->size : 1);
        if (block->device >= 0) in_use[block->device] -= block->size, total.frees++;
        block->start = 0;
    }
    return unlocked(cudaSuccess);
}
EXPORT cudaError_t cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size, current_device); }
EXPORT cudaError_t cudaMallocManaged(void **p, size_t size, unsigned flags) { return cudaMalloc(p, size); }
EXPORT cudaError_t cudaMallocAsync(void **p, size_t size, cudaStream_t stream) { return cudaMalloc(p, size); }
EXPORT cudaError_t cudaMallocHost(void **pointer, size_t size) { return allocate(pointer, size, -1); }
EXPORT cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) { return allocate(pointer, size, -1); }
EXPORT cudaError_t cudaFree(void *pointer) {
    lock();
    cudaError_t error = pointer ? check_unsafe("cudaFree") : cudaSuccess;
    unlock();
    return error ? error : release(pointer);
}
EXPORT cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) { return release(pointer); }
EXPORT cudaError_t cudaFreeHost(void *pointer) { return release(pointer); }
EXPORT cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned flags) { return cudaSuccess; }
EXPORT cudaError_t cudaHostUnregister(void *pointer) { return cudaSuccess; }
EXPORT cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
    *all = device_memory();
    *available = *all - in_use[current_device];
    return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    lock();
    Block *block = find_block(pointer);
    *found = (struct cudaPointerAttributes){.type = cudaMemoryTypeUnregistered};
    if (block) {
        found->type = block->device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
        found->device = block->device < 0 ? 0 : block->device;
        found->devicePointer = (void *)pointer;
        found->hostPointer = block->device < 0 ? (void *)pointer : 0;
    }
    return unlocked(cudaSuccess);
}

static void report_races(Stream *reader) {
    for (int i = 0; i < stream_count; i++) {
        Stream *stream = &streams[i];
        int is_pending = stream->queued > stream->done && stream->queued > reader->waited[i];
        if (stream == reader || stream->thread != thread() || !is_pending) continue;
        total.races++;
        fprintf(stderr, "[fakecuda] race: a copy to the host on stream %d does not wait for stream %d, %llu behind\n",
                reader->number, i, stream->queued - stream->done);
    }
}
static cudaError_t copy(void *to, const void *from, size_t size, cudaStream_t handle, int is_waiting) {
    lock();
    Stream *stream = stream_of(handle);
    Capture *capture = capture_of(stream);
    int is_to_device = is_on_device(to), is_from_device = is_on_device(from);
    cudaError_t error = is_waiting ? check_unsafe("cudaMemcpy") : cudaSuccess;
    if (!error && capture && !(find_block(to) && find_block(from)))
        error = violate("a copy of pageable memory", capture);
    if (error) return unlocked(error);
    if (is_from_device && !is_to_device) report_races(stream), total.to_host++;
    if (is_to_device && !is_from_device) total.to_device++;
    const char *within = is_to_device ? "[copy]" : "[copy on the host]";
    error = fake_launch(handle, is_from_device == is_to_device ? within : is_to_device ? "[copy in]" : "[copy out]");
    if (!error && !capture) memmove(to, from, size);
    if (!error && is_waiting) stream->done = stream->queued;
    return unlocked(error);
}
EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind k, cudaStream_t s) {
    return copy(to, from, size, s, 0);
}
EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    return copy(to, from, size, 0, 1);
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int td, const void *from, int fd, size_t size, cudaStream_t stream) {
    return copy(to, from, size, stream, 0);
}
EXPORT cudaError_t cudaMemcpyToSymbol(const void *to, const void *f, size_t size, size_t o, enum cudaMemcpyKind k) {
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
    cudaError_t error = fake_launch(stream, "[memset]");
    if (!error && !capture_of(stream_of(stream))) memset(to, value, size);
    return error;
}
EXPORT cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, 0); }
EXPORT cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) {
    static char memory[1 << 16];
    *pointer = memory;
    return cudaSuccess;
}

// ---- Streams and events

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *made, unsigned flags, int priority) {
    lock();
    if (stream_count == MOST_STREAMS) return unlocked(fail(cudaErrorMemoryAllocation));
    Stream *stream = &streams[stream_count];
    stream->number = stream_count++;
    stream->device = current_device;
    stream->priority = priority;
    *made = (cudaStream_t)stream;
    return unlocked(cudaSuccess);
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *made, unsigned flags) {
    return cudaStreamCreateWithPriority(made, flags, 0);
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *made) { return cudaStreamCreateWithPriority(made, 0, 0); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = stream_of(stream)->priority;
    return cudaSuccess;
}
static cudaError_t check_stream(Stream *stream, const char *call) {
    if (is_dead()) return fail(cudaErrorIllegalAddress);
    return capture_of(stream) ? violate(call, stream->capture) : cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    lock();
    Stream *stream = stream_of(handle);
    total.stream_waits++;
    cudaError_t error = check_stream(stream, "cudaStreamSynchronize");
    if (!error) stream->done = stream->queued, stream->graphs_done = stream->graphs_queued;
    return unlocked(error);
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t handle) {
    lock();
    return unlocked(check_stream(stream_of(handle), "cudaStreamQuery"));
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data, unsigned f) {
    function(stream, cudaSuccess, data);
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *made, unsigned flags) {
    *made = (cudaEvent_t)calloc(1, sizeof(Event));
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *made) { return cudaEventCreateWithFlags(made, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) { return cudaSuccess; } // streams may still wait for it
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t on, unsigned flags) {
    lock();
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    Stream *stream = stream_of(on);
    *(Event *)handle = (Event){stream, stream->queued, stream->graphs_queued, capture_of(stream) != 0,
                               now.tv_sec * 1e3 + now.tv_nsec * 1e-6};
    return unlocked(cudaSuccess);
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t on) {
    return cudaEventRecordWithFlags(event, on, 0);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t handle) {
    lock();
    if (is_dead()) return unlocked(fail(cudaErrorIllegalAddress));
    if (((Event *)handle)->is_captured) return unlocked(fail(cudaErrorCapturedEvent));
    return unlocked(check_unsafe("cudaEventQuery"));
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    lock();
    Event *event = (Event *)handle;
    total.event_waits++;
    if (is_dead()) return unlocked(fail(cudaErrorIllegalAddress));
    if (event->is_captured) return unlocked(fail(cudaErrorCapturedEvent));
    cudaError_t error = check_unsafe("cudaEventSynchronize");
    Stream *stream = event->stream;
    if (!error && stream && stream->done < event->queued) stream->done = event->queued;
    if (!error && stream && stream->graphs_done < event->graphs_queued) stream->graphs_done = event->graphs_queued;
    return unlocked(error);
}
EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = ((Event *)to)->milliseconds - ((Event *)from)->milliseconds;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t awaited, unsigned flags) {
    lock();
    Event *event = (Event *)awaited;
    Stream *stream = stream_of(handle), *other = event->stream;
    cudaError_t error = cudaSuccess;
    if (other && event->is_captured && !stream->capture)
        stream->capture = capture_of(other); // it joins the capture
    else if (other && other != stream && !event->is_captured && capture_of(stream))
        error = violate("waiting for an event from outside", stream->capture);
    if (other) stream->waited[other->number] = event->queued;
    return unlocked(error);
}

// ---- Capture and graphs

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    int before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
    lock();
    Stream *stream = stream_of(handle);
    if (stream == &streams[0] || capture_of(stream) || capture_count == MOST_CAPTURES)
        return unlocked(fail(cudaErrorStreamCaptureUnsupported));
    Capture *capture = calloc(1, sizeof *capture);
    *capture = (Capture){.mode = mode, .is_active = 1, .thread = thread(), .number = ++total.captures};
    stream->capture = captures[capture_count++] = capture;
    return unlocked(cudaSuccess);
}
static void dump(Graph *graph) {
    FILE *file = getenv("FAKECUDA_DUMP") ? fopen(getenv("FAKECUDA_DUMP"), "w") : 0;
    if (!file) return;
    for (Operation *operation = graph->first; operation; operation = operation->next)
        fprintf(file, "%s\n", operation->name);
    fclose(file);
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *made) {
    lock();
    Capture *capture = stream_of(handle)->capture;
    *made = 0;
    if (!capture) return unlocked(fail(cudaErrorIllegalState));
    if (capture->thread != thread() && capture->mode != cudaStreamCaptureModeRelaxed)
        return unlocked(fail(cudaErrorStreamCaptureWrongThread));
    capture->is_active = 0;
    for (int i = 0; i < capture_count; i++)
        if (captures[i] == capture) captures[i--] = captures[--capture_count];
    for (int i = 0; i < stream_count; i++)
        if (streams[i].capture == capture) streams[i].capture = 0;
    if (capture->is_broken) return unlocked(fail(cudaErrorStreamCaptureInvalidated));
    dump(&capture->graph);
    *made = (cudaGraph_t)&capture->graph;
    return unlocked(cudaSuccess);
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status) {
    lock();
    Capture *capture = capture_of(stream_of(handle));
    *status = !capture             ? cudaStreamCaptureStatusNone
              : capture->is_broken ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return unlocked(cudaSuccess);
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, enum cudaStreamCaptureStatus *status,
                                            unsigned long long *number, cudaGraph_t *graph,
                                            const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *n) {
    Capture *capture = capture_of(stream_of(handle));
    if (number) *number = capture ? capture->number : 0;
    if (graph) *graph = 0;
    if (nodes) *nodes = 0;
    if (edges) *edges = 0;
    if (n) *n = 0;
    return cudaStreamIsCapturing(handle, status);
}
EXPORT cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t s, cudaGraphNode_t *nodes,
                                                       const cudaGraphEdgeData *edges, size_t count, unsigned flags) {
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    *count = ((Graph *)graph)->size;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    *made = (cudaGraphExec_t)graph;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiate(made, graph, flags);
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t handle) {
    lock();
    Stream *stream = stream_of(handle);
    total.replays++;
    operations += ((Graph *)graph)->size;
    if (is_dead()) return unlocked(fail(cudaErrorIllegalAddress));
    if (capture_of(stream)) return unlocked(violate("cudaGraphLaunch", stream->capture));
    stream->queued += ((Graph *)graph)->size;
    stream->thread = thread();
    unsigned long ahead = ++stream->graphs_queued - stream->graphs_done;
    if (ahead > total.most_ahead) total.most_ahead = ahead;
    return unlocked(cudaSuccess);
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t *found, cudaGraphEdgeData *edges,
                                                size_t *count) {
    *count = 0;
    return cudaSuccess;
}

// ---- What the driver itself is asked for

static int succeed(void) { return 0; }
static int read_context_state(int device, unsigned *flags, int *is_active) {
    if (flags) *flags = 0;
    if (is_active) *is_active = 1;
    return 0;
}
static int describe_driver_error(int error, const char **text) {
    *text = "error of the driver";
    return 0;
}
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *result) {
    *found = !strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)read_context_state
             : !strcmp(name, "cuGetErrorString")         ? (void *)describe_driver_error
                                                         : (void *)succeed;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

// ---- For the tests

EXPORT void fakecuda_reset(void) {
    lock();
    for (int i = 0; i < name_count; i++) counts[i].run = counts[i].captured = 0;
    memset(&total, 0, sizeof total);
    unlock();
}

// Writes a line for each total, then one for each operation: how often it ran by itself, how often it was captured.
EXPORT void fakecuda_report(const char *path) {
    lock();
    FILE *file = fopen(path, "w");
    fprintf(file, "stream_waits %lu\ndevice_waits %lu\nevent_waits %lu\nto_device %lu\nto_host %lu\n",
            total.stream_waits, total.device_waits, total.event_waits, total.to_device, total.to_host);
    fprintf(file, "mallocs %lu\nfrees %lu\nreplays %lu\ncaptures %lu\nraces %lu\nviolations %lu\nmost_ahead %lu\n",
            total.mallocs, total.frees, total.replays, total.captures, total.races, total.violations, total.most_ahead);
    for (int i = 0; i < name_count; i++)
        if (counts[i].run || counts[i].captured)
            fprintf(file, "%lu\t%lu\t%s\n", counts[i].run, counts[i].captured, counts[i].name);
    fclose(file);
    unlock();
}
