"""Archives as a test describes them, broken and hostile ones too."""

import io
import stat
import tarfile
import warnings
import zipfile


def write_tar(path, *entries, mode="w"):
    """`entries` are (name, bytes), or (name, attributes of a TarInfo)."""
    with tarfile.open(path, mode) as tar:
        for name, what in entries:
            info = tarfile.TarInfo(name)
            content = what if isinstance(what, bytes) else b""
            for key, value in {} if isinstance(what, bytes) else what.items():
                setattr(info, key, value)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, *entries):
    """`entries` are (name, bytes) or (name, bytes, mode); packed."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there twice
        for name, content, *mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode[0] if mode else stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, content)
    return path
