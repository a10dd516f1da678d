// A compiler of kernels that makes emulated ones: a "cubin" is the path of a library that g++ made of the named source.
// FAKE_CUDA_SOURCES: a file of lines "source kernel kernel ..". FAKE_CUDA_COMPILE: the emulator's compile.sh and the directory of its libraries.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
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
    std::string command = getenv("FAKE_CUDA_COMPILE") + (" " + program->name) + " '", line, word;
    std::ifstream sources(getenv("FAKE_CUDA_SOURCES"));
    while (std::getline(sources, line)) {
        std::istringstream words(line);
        if (words >> word && word == program->name) {
            while (words >> word) {
                command += word + " ";
            }
        }
    }
    command += "'";
    for (int i = 0; i < count; i++) {
        if (!strncmp(options[i], "-D", 2)) {
            command += std::string(" ") + options[i];
        }
    }
    FILE *made = popen(command.c_str(), "r");
    for (int c; made && (c = fgetc(made)) != EOF && c != '\n';) {
        program->library += static_cast<char>(c);
    }
    return !made || pclose(made) ? 6 : 0;
}
int nvrtcGetCUBINSize(Program *program, size_t *size) { return *size = program->library.size() + 1, 0; }
int nvrtcGetCUBIN(Program *program, char *cubin) { return strcpy(cubin, program->library.c_str()), 0; }
int nvrtcGetProgramLogSize(Program *, size_t *size) { return *size = 1, 0; }
int nvrtcGetProgramLog(Program *, char *log) { return *log = 0, 0; }
int nvrtcDestroyProgram(Program **program) { return delete *program, 0; }
}
