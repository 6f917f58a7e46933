# Built by `npm run build:native` and by nothing else: without it Keyturn uses node:crypto.
{
  "targets": [
    {
      "target_name": "keyturn_native",
      "sources": ["addon.cc", "aead.cc"],
      "defines": ["NAPI_VERSION=8"],
      "cflags_cc": ["-std=c++17", "-Wall", "-Wextra", "-O2", "-fvisibility=hidden"],
      "xcode_settings": {
        "CLANG_CXX_LANGUAGE_STANDARD": "c++17",
        "WARNING_CFLAGS": ["-Wall", "-Wextra"],
        "GCC_OPTIMIZATION_LEVEL": "2"
      }
    }
  ]
}
