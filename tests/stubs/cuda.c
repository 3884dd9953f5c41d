// A CUDA driver's library without a driver: the functions that Nibble asks, with answers from the environment.
//   STUB_CUDA_VERSION  what cuDriverGetVersion says [13000]
//   STUB_CUDA_INIT     what cuInit returns [0]
//   STUB_CUDA_GPUS     the GPUs in CUDA's order, by their letters in nvml.c ["BA"]; B has compute capability 9.0, A 7.0
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *variable, int usual) {
    const char *text = getenv(variable);
    return text ? atoi(text) : usual;
}

static const char *gpus(void) {
    const char *text = getenv("STUB_CUDA_GPUS");
    return text ? text : "BA";
}

int cuDriverGetVersion(int *version) {
    *version = number("STUB_CUDA_VERSION", 13000);
    return 0;
}

int cuInit(unsigned flags) {
    return flags ? 1 : number("STUB_CUDA_INIT", 0);
}

int cuGetErrorName(int code, const char **name) {
    *name = code == 100   ? "CUDA_ERROR_NO_DEVICE"
            : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
            : code == 999 ? "CUDA_ERROR_UNKNOWN"
                          : NULL;
    return *name ? 0 : 1;
}

int cuDeviceGetCount(int *count) {
    *count = (int)strlen(gpus());
    return 0;
}

int cuDeviceGet(int *device, int index) {
    *device = gpus()[index];
    return 0;
}

int cuDeviceGetName(char *name, int room, int device) {
    snprintf(name, room, "Stub %c", device);
    return 0;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    memset(uuid, 0, 16);
    uuid[15] = (unsigned char)(device - 'A' + 10);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? (device == 'B' ? 9 : 7) : 0;
    return 0;
}
