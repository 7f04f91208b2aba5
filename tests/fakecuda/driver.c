// Stands in for libcuda.so.1, the driver: PyTorch looks up these functions and Triton launches its kernels with them.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#define EXPORT __attribute__((visibility("default")))
#define SUCCEEDS(name)                                                                                                 \
    EXPORT int name(void) { return 0; }

typedef struct Launch {
    unsigned grid[3], block[3], shared;
    void *stream;
} Launch;

static int launch(void *stream, const char *name) {
    int (*put)(void *, const char *) = dlsym(RTLD_DEFAULT, "fake_launch");
    return put ? put(stream, name) : 0;
}
EXPORT int cuLaunchKernelEx(const Launch *launched, void *function, void **arguments, void **extra) {
    return launch(launched->stream, function);
}
EXPORT int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream, void **arguments, void **extra) {
    return launch(stream, function);
}
EXPORT int cuStreamIsCapturing(void *stream, int *status) {
    int (*ask)(void *, int *) = dlsym(RTLD_DEFAULT, "cudaStreamIsCapturing");
    return ask ? ask(stream, status) : (*status = 0);
}
// A function is its name.
EXPORT int cuModuleLoadData(void **made, const void *image) { return *made = malloc(1), 0; }
EXPORT int cuModuleLoadDataEx(void **made, const void *image, unsigned n, void *o, void *v) {
    return *made = malloc(1), 0;
}
EXPORT int cuModuleGetFunction(void **made, void *module, const char *name) { return *made = strdup(name), 0; }
EXPORT int cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0; // threads of a block, registers of a thread
    return 0;
}
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    static const int known[][2] = {{1, 1024}, {8, 49152},    {10, 32},    {12, 65536}, {13, 1980000},
                                   {16, 132}, {36, 1980000}, {37, 5120},  {39, 2048},  {75, 9},
                                   {76, 0},   {81, 233472},  {82, 65536}, {97, 232448}}; // CUdevice_attribute
    *value = 1;
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute) *value = known[i][1];
    return 0;
}
EXPORT int cuDriverGetVersion(int *version) { return *version = 13020, 0; }
EXPORT int cuDeviceGet(int *device, int number) { return *device = number, 0; }
EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    return *flags = 0, *is_active = 1, 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)8, 0; }
EXPORT int cuCtxGetCurrent(void **context) { return *context = (void *)8, 0; }
EXPORT int cuCtxGetDevice(int *device) { return *device = 0; }
EXPORT int cuGetErrorString(int error, const char **text) { return *text = "error of the driver", 0; }
EXPORT int cuPointerGetAttribute(void **value, int attribute, void *pointer) { return *value = pointer, 0; }
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int b, size_t s) { return *n = 2, 0; }
EXPORT int cuOccupancyMaxActiveClusters(int *n, void *f, void *config) { return *n = 16, 0; }
SUCCEEDS(cuInit)
SUCCEEDS(cuCtxGetLimit)
SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuCtxSetLimit)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuLaunchCooperativeKernel)
SUCCEEDS(cuLinkAddData_v2)
SUCCEEDS(cuLinkComplete)
SUCCEEDS(cuLinkCreate_v2)
SUCCEEDS(cuModuleLoad)
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuPointerGetAttributes)
SUCCEEDS(cuTensorMapEncodeIm2col)
SUCCEEDS(cuTensorMapEncodeTiled)
