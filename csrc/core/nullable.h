// A pointer that may be null; plain pointers may not.
#pragma once

namespace pycc {

template <class T>
struct Nullable {
    T* data;

    operator T*() const { return data; }
};

}  // namespace pycc
