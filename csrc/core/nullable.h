// A pointer that may be null, told from one that may not by its type.
#pragma once

namespace pycc {

template <class T>
struct Nullable {
    T* data;

    operator T*() const { return data; }
};

}  // namespace pycc
