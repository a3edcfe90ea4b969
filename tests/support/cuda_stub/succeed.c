/* What of the CUDA driver, the runtime and cuBLAS only has to succeed, or to return a handle. In C and without their
   headers, so that the arguments need not be named. */
#include <stdlib.h>

#define SUCCEEDS(name) \
  int name() { return 0; }
#define CREATES(name) \
  int name(void** handle) { return *handle = malloc(8), 0; }

SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuCtxGetLimit)
SUCCEEDS(cuCtxSetLimit)
SUCCEEDS(cudaGetLastError)
SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaDeviceSynchronize)
SUCCEEDS(cudaStreamSynchronize)
SUCCEEDS(cudaStreamQuery)
SUCCEEDS(cudaStreamWaitEvent)
SUCCEEDS(cudaThreadExchangeStreamCaptureMode)
SUCCEEDS(cudaEventDestroy)
SUCCEEDS(cudaEventRecord)
SUCCEEDS(cudaEventRecordWithFlags)
SUCCEEDS(cudaEventQuery)
SUCCEEDS(cudaEventSynchronize)
SUCCEEDS(cudaFuncSetAttribute)
SUCCEEDS(cudaLaunchKernel)
SUCCEEDS(__cudaLaunchKernel)
SUCCEEDS(cudaLaunchKernelExC)
SUCCEEDS(__cudaGetKernel)
SUCCEEDS(cublasDestroy_v2)
SUCCEEDS(cublasSetStream_v2)
SUCCEEDS(cublasSetWorkspace_v2)
SUCCEEDS(cublasSetMathMode)
SUCCEEDS(cublasSetPointerMode_v2)
SUCCEEDS(cublasSgemm_v2)
SUCCEEDS(cublasGetMathMode)
SUCCEEDS(cublasGetPointerMode_v2)
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceDestroy)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutDestroy)

CREATES(cublasCreate_v2)
CREATES(cublasLtCreate)
CREATES(cublasLtMatmulDescCreate)
CREATES(cublasLtMatmulPreferenceCreate)
CREATES(cublasLtMatrixLayoutCreate)

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* operation, void* a, void* b, void* c, void* d, void* preference,
                                   int asked, void* results, int* found) {
  return *found = 1, 0;
}
