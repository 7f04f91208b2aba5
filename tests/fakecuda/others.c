// Functions of cuDNN, cuBLAS and the runtime whose arguments do not matter, or only the first ones. They are declared
// without the headers of these libraries, which would ask for all of them.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#define EXPORT __attribute__((visibility("default")))

typedef struct Handle {
    void *stream;
} Handle;
int fake_launch(void *stream, const char *name);

#define CREATES(name)                                                                                                  \
    EXPORT int name(void **made) {                                                                                     \
        *made = calloc(1, 256);                                                                                        \
        return 0;                                                                                                      \
    }
#define SUCCEEDS(name)                                                                                                 \
    EXPORT int name(void) { return 0; }
#define LAUNCHES(name, text)                                                                                           \
    EXPORT int name(Handle *handle) { return fake_launch(handle->stream, text); }
#define READS_ZERO(name)                                                                                               \
    EXPORT int name(Handle *handle, int *value) { return *value = 0; }
#define UNSUPPORTED(name)                                                                                              \
    EXPORT int name(void) { return 801; } // cudaErrorNotSupported

// ---- cuDNN
CREATES(cudnnCreateTensorDescriptor)
CREATES(cudnnCreateFilterDescriptor)
CREATES(cudnnCreateConvolutionDescriptor)
CREATES(cudnnCreateActivationDescriptor)
SUCCEEDS(cudnnDestroyTensorDescriptor)
SUCCEEDS(cudnnDestroyFilterDescriptor)
SUCCEEDS(cudnnDestroyConvolutionDescriptor)
SUCCEEDS(cudnnDestroyActivationDescriptor)
SUCCEEDS(cudnnSetTensorNdDescriptor)
SUCCEEDS(cudnnSetFilterNdDescriptor)
SUCCEEDS(cudnnSetActivationDescriptor)
SUCCEEDS(cudnnSetConvolutionNdDescriptor)
SUCCEEDS(cudnnSetConvolutionGroupCount)
SUCCEEDS(cudnnSetConvolutionMathType)
LAUNCHES(cudnnConvolutionForward, "[convolution]")
LAUNCHES(cudnnConvolutionBackwardData, "[gradient of a convolution's input]")
LAUNCHES(cudnnConvolutionBackwardFilter, "[gradient of a convolution's weight]")
LAUNCHES(cudnnBatchNormalizationForwardTrainingEx, "[batch norm]")
LAUNCHES(cudnnBatchNormalizationForwardInference, "[batch norm in eval mode]")
LAUNCHES(cudnnBatchNormalizationBackwardEx, "[gradient of a batch norm]")
EXPORT int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *handle, int mode, int operation, void *x,
                                                                    void *z, void *y, void *statistics,
                                                                    void *activation, size_t *size) {
    return *size = 1 << 16, 0;
}
EXPORT int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *handle, int mode, int operation, void *activation,
                                                                void *x, size_t *size) {
    return *size = 1 << 16, 0;
}
EXPORT int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *handle, int mode, int operation, void *x, void *y,
                                                             void *dy, void *dz, void *dx, void *statistics,
                                                             void *activation, size_t *size) {
    return *size = 1 << 16, 0;
}

// ---- cuBLAS
CREATES(cublasCreate_v2)
SUCCEEDS(cublasDestroy_v2)
EXPORT int cublasSetStream_v2(Handle *handle, void *stream) {
    handle->stream = stream;
    return 0;
}
SUCCEEDS(cublasSetWorkspace_v2)
READS_ZERO(cublasGetMathMode)
SUCCEEDS(cublasSetMathMode)
READS_ZERO(cublasGetPointerMode_v2)
SUCCEEDS(cublasSetPointerMode_v2)
SUCCEEDS(cublasSetSmCountTarget)
LAUNCHES(cublasGemmEx, "[matrix product]")
LAUNCHES(cublasSgemmEx, "[matrix product]")
LAUNCHES(cublasSgemm_v2, "[matrix product]")
LAUNCHES(cublasDgemm_v2, "[matrix product]")
LAUNCHES(cublasSgemv_v2, "[matrix product]")
LAUNCHES(cublasDgemv_v2, "[matrix product]")
LAUNCHES(cublasGemmStridedBatchedEx, "[matrix product]")
LAUNCHES(cublasSdot_v2, "[matrix product]")
EXPORT size_t cublasLtGetVersion(void) { return 130400; }
CREATES(cublasLtMatmulDescCreate)
CREATES(cublasLtMatrixLayoutCreate)
CREATES(cublasLtMatmulPreferenceCreate)
SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutDestroy)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceDestroy)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d,
                                          void *preference, int wanted, char *result, int *count) {
    memset(result, 0, 96);
    return *count = 1, 0;
}
EXPORT int cublasLtMatmul(void *handle, void *operation, const void *alpha, const void *a, void *al, const void *b,
                          void *bl, const void *beta, const void *c, void *cl, void *d, void *dl, const void *algorithm,
                          void *workspace, size_t size, void *stream) {
    return fake_launch(stream, "[matrix product]");
}

// ---- The runtime
UNSUPPORTED(cudaDeviceGetDefaultMemPool)
UNSUPPORTED(cudaDeviceGetGraphMemAttribute)
UNSUPPORTED(cudaDeviceSetGraphMemAttribute)
UNSUPPORTED(cudaIpcCloseMemHandle)
UNSUPPORTED(cudaIpcGetEventHandle)
UNSUPPORTED(cudaIpcGetMemHandle)
UNSUPPORTED(cudaIpcOpenEventHandle)
UNSUPPORTED(cudaIpcOpenMemHandle)
UNSUPPORTED(cudaLibraryGetGlobal)
UNSUPPORTED(cudaLibraryGetKernel)
UNSUPPORTED(cudaLibraryGetKernelCount)
UNSUPPORTED(cudaLibraryGetManaged)
UNSUPPORTED(cudaLibraryGetUnifiedFunction)
UNSUPPORTED(cudaLibraryLoadData)
UNSUPPORTED(cudaLibraryLoadFromFile)
UNSUPPORTED(cudaLibraryUnload)
UNSUPPORTED(cudaMemPoolGetAttribute)
UNSUPPORTED(cudaMemPoolSetAttribute)
UNSUPPORTED(cudaMemPoolSetAccess)
UNSUPPORTED(cudaMemPoolTrimTo)
UNSUPPORTED(cudaGraphAddNode)
UNSUPPORTED(cudaGraphConditionalHandleCreate)
UNSUPPORTED(cudaGraphRetainUserObject)
EXPORT int cudaUserObjectCreate(void **made) { return *made = 0, 0; }
SUCCEEDS(cudaUserObjectRelease)
