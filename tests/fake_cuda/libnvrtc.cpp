// A compiler of kernels that makes emulated ones: a "cubin" is the path of a library that g++ made of the named source.
// FAKE_CUDA_SOURCES: a file of lines "source kernel kernel ..". FAKE_CUDA_INCLUDE: g++'s flags for the directories. FAKE_CUDA_OUT: where libraries go.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

struct Program {
    std::string name, library;
};

extern "C" {
int nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0, 0; }
int nvrtcCreateProgram(Program **program, const char *source, const char *name, int, const char *const *, const char *const *) {
    if (strstr(source, "#include")) {
        return 4;
    }
    return *program = new Program{name, ""}, 0;
}
int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    std::string defines;
    for (int i = 0; i < count; i++) {
        if (!strncmp(options[i], "-D", 2)) {
            defines += std::string(" ") + options[i];
        }
    }
    std::string text = "#include <" + program->name + ">\n", line, word;
    std::ifstream sources(getenv("FAKE_CUDA_SOURCES"));
    while (std::getline(sources, line)) {
        std::istringstream words(line);
        if (words >> word && word == program->name) {
            while (words >> word) {
                text += "EMULATED(" + word + ")\n";
            }
        }
    }
    char stem[64];
    snprintf(stem, sizeof stem, "/%zx", std::hash<std::string>()(program->name + defines));
    std::string base = getenv("FAKE_CUDA_OUT") + std::string(stem);
    std::ofstream(base + ".cpp") << text;
    program->library = base + ".so";
    std::string command = "g++ -std=c++20 -O2 -ffp-contract=off -fno-strict-aliasing -w -shared -fPIC -fcf-protection=none -U_FORTIFY_SOURCE -Wl,-Bsymbolic -include emulate.h " +
                          std::string(getenv("FAKE_CUDA_INCLUDE")) + defines + " " + base + ".cpp -o " + program->library;
    return system(command.c_str()) ? 6 : 0;
}
int nvrtcGetCUBINSize(Program *program, size_t *size) { return *size = program->library.size() + 1, 0; }
int nvrtcGetCUBIN(Program *program, char *cubin) { return strcpy(cubin, program->library.c_str()), 0; }
int nvrtcGetProgramLogSize(Program *, size_t *size) { return *size = 1, 0; }
int nvrtcGetProgramLog(Program *, char *log) { return *log = 0, 0; }
int nvrtcDestroyProgram(Program **program) { return delete *program, 0; }
}
