// NVIDIA's management library without a driver: two GPUs, A and B in its order.
//   STUB_NVML_INIT   what nvmlInit_v2 returns [0]
//   STUB_NVML_STATE  a file that says what B holds at each call: "device process" in MiB, process -1 where it is not shown;
//                    or "error CODE". A holds 1000 MiB, and none of this process.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;
typedef struct {
    char legacy_id[16];
    unsigned domain, bus, device, pci_device, pci_subsystem;
    char bus_id[32];
} Pci;

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
static const u64 MIB = 1 << 20;
static char letters[] = "AB";

// Reads the state of a GPU; `process` is -1 where NVML would not show it.
static int state(const char *gpu, long *device, long *process) {
    const char *path = getenv("STUB_NVML_STATE");
    *device = 1000;
    *process = -1;
    if (*gpu == 'A' || !path) return SUCCESS;
    FILE *file = fopen(path, "r");
    if (!file) return 999;
    int code = 999;
    if (fscanf(file, "error %d", &code) != 1) {
        rewind(file);
        if (fscanf(file, "%ld %ld", device, process) == 2) code = SUCCESS;
    }
    fclose(file);
    return code;
}

static void uuid_of(char letter, char *uuid, unsigned room) {
    snprintf(uuid, room, "GPU-00000000-0000-0000-0000-00000000000%c", letter - 'A' + 'a');
}

int nvmlInit_v2(void) {
    const char *code = getenv("STUB_NVML_INIT");
    return code ? atoi(code) : SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *version, unsigned room) {
    snprintf(version, room, "580.01");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 2;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, char **gpu) {
    if (index > 1) return INVALID_ARGUMENT;
    *gpu = &letters[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, char **gpu) {
    char known[96];
    for (*gpu = letters; **gpu; ++*gpu) {
        uuid_of(**gpu, known, sizeof known);
        if (!strcmp(uuid, known)) return SUCCESS;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(char *gpu, char *name, unsigned room) {
    snprintf(name, room, "Stub %c", *gpu);
    return SUCCESS;
}

int nvmlDeviceGetUUID(char *gpu, char *uuid, unsigned room) {
    uuid_of(*gpu, uuid, room);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(char *gpu, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:0%c:00.0", *gpu);
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(char *gpu, int *major, int *minor) {
    *major = *gpu == 'B' ? 9 : 7;
    *minor = 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(char *gpu, Memory *memory) {
    long device, process;
    int code = state(gpu, &device, &process);
    memory->total = 8000 * MIB;
    memory->used = (u64)device * MIB;
    memory->free = memory->total - memory->used;
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(char *gpu, unsigned *count, Process *processes) {
    long device, process;
    int code = state(gpu, &device, &process);
    if (code) return code;
    unsigned n = process < 0 ? 1 : 2;
    if (*count < n) {
        *count = n;
        return INSUFFICIENT_SIZE;
    }
    *count = n;
    processes[0] = (Process){.pid = 1, .used = 500 * MIB};
    if (n == 2) processes[1] = (Process){.pid = (unsigned)getpid(), .used = (u64)process * MIB};
    return SUCCESS;
}
