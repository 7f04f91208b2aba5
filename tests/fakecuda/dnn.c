// The part of cuDNN through which PyTorch describes a convolution and runs it. A plan is a chain of descriptors, each
// linked to what it was made from; the operation at its end says which convolution it is.
#include "fake.h"
#include <cudnn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct Handle {
    cudaStream_t stream;
} Handle;

typedef struct Descriptor {
    int type;
    struct Descriptor *made_from;
} Descriptor;

EXPORT size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
EXPORT size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }
EXPORT const char *cudnnGetErrorString(cudnnStatus_t status) { return "error of cuDNN"; }
EXPORT void cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "error of cuDNN"); }
EXPORT cudnnStatus_t cudnnCreate(cudnnHandle_t *made) {
    *made = calloc(1, sizeof(Handle));
    return CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    ((Handle *)handle)->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
    *stream = ((Handle *)handle)->stream;
    return CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *made) {
    Descriptor *descriptor = calloc(1, sizeof *descriptor);
    descriptor->type = type;
    *made = descriptor;
    return CUDNN_STATUS_SUCCESS;
}
EXPORT cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) { return CUDNN_STATUS_SUCCESS; }
EXPORT cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) { return CUDNN_STATUS_SUCCESS; }
EXPORT cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                              cudnnBackendAttributeType_t type, int64_t count, const void *value) {
    int is_source = name == CUDNN_ATTR_OPERATIONGRAPH_OPS || name == CUDNN_ATTR_ENGINE_OPERATION_GRAPH ||
                    name == CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH || name == CUDNN_ATTR_ENGINECFG_ENGINE ||
                    name == CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG;
    if (is_source && count > 0) ((Descriptor *)descriptor)->made_from = *(Descriptor **)value;
    return CUDNN_STATUS_SUCCESS;
}
// Heuristics find one engine, whose workspace has a mebibyte; nothing else is ever found.
EXPORT cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                              cudnnBackendAttributeType_t type, int64_t wanted, int64_t *count,
                                              void *value) {
    int is_number = type == CUDNN_TYPE_INT64, is_filled = value && wanted > 0;
    int is_found = name == CUDNN_ATTR_ENGINEHEUR_RESULTS || name == CUDNN_ATTR_ENGINECFG_ENGINE;
    if (count) *count = is_found || is_number;
    if (is_found && is_filled)
        (*(Descriptor **)value)->made_from = descriptor;
    else if (is_number && is_filled)
        *(int64_t *)value = name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE ? 1 << 20 : 0;
    return CUDNN_STATUS_SUCCESS;
}
static const char *name_of(Descriptor *plan) {
    for (int i = 0; plan && i < 16; i++, plan = plan->made_from) {
        if (plan->type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR) return "[convolution]";
        if (plan->type == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR)
            return "[gradient of a convolution's input]";
        if (plan->type == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR)
            return "[gradient of a convolution's weight]";
    }
    return "[another operation of cuDNN]";
}
EXPORT cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                         cudnnBackendDescriptor_t arguments) {
    cudaError_t error = fake_launch(((Handle *)handle)->stream, name_of(plan));
    return error ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}
