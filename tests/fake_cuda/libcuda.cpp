// A CUDA driver of one GPU that runs emulated kernels: what the engine asks of the real one, with these of its rules.
//
// Everything put on the stream waits until somebody waits for it, so that a copy from page-locked memory reads what is there then; pageable memory
// is read at once, as the real driver does. What a capture forbids is refused: copies, waiting, allocating, recording events, and kernels whose
// code was never loaded by a launch. Nothing may be on another stream than the one that was made, and nobody may wait for an event that takes the
// time. Time is not the machine's: it goes on by what is run, as `Milliseconds` says, and stands still else. A module's image is the path of a library with emulated kernels.
//
// FAKE_CUDA_MEMORY: bytes of memory it has, 80 GiB where nothing is said. FAKE_CUDA_LARGEST: the greatest piece of it that is to be had.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

enum { OK = 0, NOT_READY = 600, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500, INVALID_HANDLE = 400, LAUNCH_FAILED = 719, CAPTURE = 900 };
typedef unsigned long long Address;
typedef int (*Entry)(const unsigned *grid, const unsigned *block, unsigned shared, unsigned long long seed, void **arguments, unsigned count);

// What is run takes so long, whatever its size: tests tell by a sum what was in it.
namespace Milliseconds {
const double KERNEL = 1, PRODUCT = 2, TO_DEVICE = 1.0 / 64, TO_HOST = 1.0 / 32, ON_DEVICE = 1.0 / 16;
}

struct Function {
    Entry entry;
    unsigned allowed = 48 << 10;
    bool loaded = false;
};
struct Event {
    bool timed, recorded = false, done = false;
    double at = 0;
};
struct Graph {
    std::vector<std::function<int()>> work;
};

static std::deque<std::function<int()>> queue;
static std::map<const char *, size_t> pinned;
static Graph *capturing;
static thread_local void *current;
static std::map<Address, size_t> memory;
static size_t taken;
static int fault;
static double now;
static void *const STREAM = (void *)128;
static unsigned long long seed = 1;

// Runs what was put on the stream, no more of it than up to an event where one is waited for.
static int drain(const Event *until = nullptr) {
    if (capturing) {
        return CAPTURE;
    }
    while (!queue.empty() && !(until && until->done)) {
        auto work = std::move(queue.front());
        queue.pop_front();
        int code = fault ? fault : work();
        fault = code;
    }
    return fault;
}

static size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

static size_t total_memory() { return setting("FAKE_CUDA_MEMORY", size_t(80) << 30); }

static bool is_pinned(const void *at) {
    auto found = pinned.upper_bound((const char *)at);
    return found != pinned.begin() && (const char *)at < (--found)->first + found->second;
}

// Puts work that takes so long on the stream.
static int put(void *stream, double takes, std::function<int()> work) {
    if (stream != STREAM) {
        return INVALID_HANDLE;
    }
    if (!current) {
        return INVALID_CONTEXT;
    }
    if (capturing) {
        return CAPTURE;
    }
    queue.push_back([=]() { return now += takes, work(); });
    return OK;
}

static int launch(Function *f, const unsigned *grid, const unsigned *block, unsigned shared, void *stream, void **params) {
    if (stream != STREAM) {
        return INVALID_HANDLE;
    }
    if (!current) {
        return INVALID_CONTEXT;
    }
    for (int i = 0; i < 3; i++) {
        if (grid[i] == 0 || block[i] == 0 || (i > 0 && grid[i] > 65535)) {
            return INVALID_VALUE;
        }
    }
    if (shared > f->allowed || shared > (227 << 10) || block[0] * block[1] * block[2] > 1024) {
        return INVALID_VALUE;
    }
    std::vector<unsigned long long> words;
    // The engine's list ends with a null pointer.
    for (int i = 0; i < 16 && params[i]; i++) {
        words.push_back(*(unsigned long long *)params[i]);
    }
    if (capturing && !f->loaded) {
        fprintf(stderr, "fake CUDA: a capture would load code\n");
        return CAPTURE;
    }
    f->loaded = true;
    std::vector<unsigned> at(grid, grid + 3), of(block, block + 3);
    auto work = [=]() mutable {
        std::vector<void *> pointers;
        for (auto &word : words) {
            pointers.push_back(&word);
        }
        now += Milliseconds::KERNEL;
        int wrong = f->entry(at.data(), of.data(), shared, seed++, pointers.data(), pointers.size());
        if (wrong) {
            fprintf(stderr, "fake CUDA: a kernel has another number of arguments than %zu\n", pointers.size());
        }
        return wrong ? LAUNCH_FAILED : OK;
    };
    if (capturing) {
        capturing->work.push_back(work);
    } else {
        queue.push_back(work);
    }
    return OK;
}

struct Config {
    unsigned grid[3], block[3], shared;
    void *stream;
    void *attributes;
    unsigned count;
};

extern "C" {
// Puts the work of another library on the stream, with a copy of its arguments.
int fake_enqueue(void (*run)(void *), const void *arguments, size_t bytes) {
    std::string copy((const char *)arguments, bytes);
    auto work = [=]() mutable { return run(&copy[0]), now += Milliseconds::PRODUCT, (int)OK; };
    if (capturing) {
        capturing->work.push_back(work);
        return OK;
    }
    return put(STREAM, 0, work);
}
int fake_capturing() { return capturing != nullptr; }
int cuInit(unsigned) { return OK; }
int cuDriverGetVersion(int *version) { return *version = 13000, OK; }
int cuDeviceGetCount(int *count) { return *count = 1, OK; }
int cuDeviceGet(int *device, int) { return *device = 0, OK; }
int cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "an emulated GPU"), OK; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == 16 ? 3 : attribute == 75 ? 9 : attribute == 115 ? 1 : 0;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = (void *)64, OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
int cuCtxGetCurrent(void **context) { return *context = current, OK; }
int cuCtxSetCurrent(void *context) { return current = context, OK; }
int cuStreamCreate(void **stream, unsigned) { return *stream = STREAM, OK; }
int cuStreamDestroy_v2(void *) { return OK; }
int cuStreamSynchronize(void *) { return drain(); }
int cuStreamBeginCapture_v2(void *stream, int) {
    if (capturing || stream != STREAM) {
        return CAPTURE;
    }
    capturing = new Graph;
    return OK;
}
int cuStreamEndCapture(void *, void **graph) { return *graph = capturing, capturing = nullptr, OK; }
int cuGraphInstantiateWithFlags(void **exec, Graph *graph, unsigned long long) { return *exec = new Graph(*graph), OK; }
int cuGraphUpload(void *, void *) { return OK; }
int cuGraphLaunch(Graph *graph, void *stream) {
    Graph copy = *graph;
    return put(stream, 0, [copy]() {
        for (auto &work : copy.work) {
            if (int code = work()) {
                return code;
            }
        }
        return (int)OK;
    });
}
int cuGraphExecDestroy(Graph *graph) { return delete graph, OK; }
int cuGraphDestroy(Graph *graph) { return delete graph, OK; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { return *total = total_memory(), *free = *total - taken, OK; }
int cuMemAlloc_v2(Address *at, size_t bytes) {
    if (capturing || !bytes) {
        return capturing ? CAPTURE : INVALID_VALUE;
    }
    void *piece = nullptr;
    if (bytes > total_memory() - taken || bytes > setting("FAKE_CUDA_LARGEST", -1) || posix_memalign(&piece, 256, bytes)) {
        return OUT_OF_MEMORY;
    }
    memset(piece, 0xff, bytes);
    *at = (Address)piece;
    return memory[*at] = bytes, taken += bytes, OK;
}
int cuMemFree_v2(Address at) {
    int code = drain();
    taken -= memory[at], memory.erase(at);
    return free((void *)at), code;
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    if (capturing) {
        return CAPTURE;
    }
    *at = malloc(bytes);
    memset(*at, 0xff, bytes);
    pinned[(const char *)*at] = bytes;
    return OK;
}
int cuMemFreeHost(void *at) {
    // The real one does not wait for copies: neither may its caller rely on it.
    pinned.erase((const char *)at);
    return free(at), OK;
}
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    if (is_pinned(from)) {
        return put(stream, Milliseconds::TO_DEVICE, [=]() { return memcpy((void *)to, from, bytes), (int)OK; });
    }
    std::string copy((const char *)from, bytes);
    return put(stream, Milliseconds::TO_DEVICE, [=]() { return memcpy((void *)to, copy.data(), bytes), (int)OK; });
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    return put(stream, Milliseconds::TO_HOST, [=]() { return memcpy(to, (const void *)from, bytes), (int)OK; });
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    return put(stream, Milliseconds::ON_DEVICE, [=]() { return memmove((void *)to, (const void *)from, bytes), (int)OK; });
}
int cuMemsetD8Async(Address at, unsigned char byte, size_t bytes, void *stream) {
    return put(stream, 0, [=]() { return memset((void *)at, byte, bytes), (int)OK; });
}
int cuModuleLoadData(void **module, const void *image) {
    *module = dlopen((const char *)image, RTLD_NOW | RTLD_LOCAL);
    return *module ? OK : 200;
}
int cuModuleUnload(void *) { return OK; }
int cuModuleGetFunction(Function **function, void *module, const char *name) {
    void *entry = dlsym(module, (std::string("emulate_") + name).c_str());
    if (!entry) {
        return NOT_FOUND;
    }
    *function = new Function{(Entry)entry};
    return OK;
}
int cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute != 8 || value < 0 || value > (227 << 10)) {
        return INVALID_VALUE;
    }
    return function->allowed = value, OK;
}
int cuLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
                   void **params, void **) {
    unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    return launch(f, grid, block, shared, stream, params);
}
int cuLaunchKernelEx(const Config *config, Function *f, void **params, void **) {
    return launch(f, config->grid, config->block, config->shared, config->stream, params);
}
int cuEventCreate(Event **event, unsigned flags) { return *event = new Event{!(flags & 2)}, OK; }
int cuEventRecord(Event *event, void *stream) {
    event->recorded = true, event->done = false;
    return put(stream, 0, [=]() { return event->at = now, event->done = true, (int)OK; });
}
int cuEventSynchronize(Event *event) {
    if (!event->recorded || event->done) {
        return OK;
    }
    if (event->timed) {
        fprintf(stderr, "fake CUDA: somebody waits for an event that takes the time\n");
        return INVALID_HANDLE;
    }
    return drain(event);
}
int cuEventQuery(Event *event) { return event->recorded && !event->done ? NOT_READY : OK; }
int cuEventElapsedTime_v2(float *milliseconds, Event *from, Event *to) {
    *milliseconds = (float)(to->at - from->at);
    return from->timed && to->timed && from->done && to->done ? OK : INVALID_HANDLE;
}
int cuEventDestroy_v2(Event *event) {
    int code = drain();
    return delete event, code;
}
}
