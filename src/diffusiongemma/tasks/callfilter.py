"""The system calls of code that computes, as a filter for the Linux kernel (seccomp), made by libseccomp."""

import errno
import functools
import os
import sys
import tempfile
from typing import Any

__all__ = ["call_filter"]

_COMPUTING = (
    "access", "arch_prctl", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "close_range", "dup", "dup2",
    "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "exit", "exit_group",
    "faccessat", "faccessat2", "fadvise64", "fcntl", "fstat", "fstatfs", "futex", "get_mempolicy", "get_robust_list", "getcwd",
    "getdents", "getdents64", "getegid", "geteuid", "getgid", "getpgrp", "getpid", "getppid", "getrandom", "getresgid",
    "getresuid", "getrlimit", "getrusage", "gettid", "gettimeofday", "getuid", "lseek", "lstat", "madvise", "membarrier",
    "mincore", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "pause", "pipe", "pipe2", "poll", "ppoll",
    "pread64", "preadv", "prlimit64", "pselect6", "pwrite64", "read", "readlink", "readlinkat", "readv", "restart_syscall",
    "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "sched_getaffinity", "sched_yield", "select", "set_robust_list", "set_tid_address", "sigaltstack", "stat", "statfs", "statx",
    "sysinfo", "time", "times", "uname", "wait4", "waitid", "write", "writev",
)  # fmt: skip
_ENDING = (
    "accept", "accept4", "acct", "add_key", "bind", "bpf", "chmod", "chown", "chroot", "connect", "creat", "execve", "execveat",
    "fchmod", "fchmodat", "fchown", "fchownat", "finit_module", "fork", "init_module", "io_uring_setup", "kexec_load", "keyctl",
    "kill", "lchown", "link", "linkat", "listen", "memfd_create", "mkdir", "mkdirat", "mknod", "mknodat", "mount", "mq_open",
    "msgget", "open_by_handle_at", "perf_event_open", "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pivot_root",
    "process_vm_readv", "process_vm_writev", "ptrace", "removexattr", "rename", "renameat", "renameat2", "request_key", "rmdir",
    "rt_sigqueueinfo", "rt_tgsigqueueinfo", "semget", "setns", "setpgid", "setsid", "setxattr", "shmget", "socket", "socketpair",
    "symlink", "symlinkat", "tgkill", "tkill", "truncate", "umount2", "unlink", "unlinkat", "unshare", "userfaultfd", "utimensat",
    "vfork",
)  # fmt: skip
"""What neither list has fails with EPERM; calls that depend on their arguments are in ``call_filter``."""
_CLONE_THREAD = 0x10000
"""linux/sched.h."""


@functools.cache
def call_filter() -> bytes:
    """The filter as the kernel takes it (BPF); empty where there is none: no Linux, no package pyseccomp, no libseccomp."""
    if sys.platform != "linux":
        return b""
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError):  # no package, no library
        return b""
    made = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    arg, masked, ending = pyseccomp.Arg, pyseccomp.MASKED_EQ, pyseccomp.KILL_PROCESS
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    rules: list[tuple[int, str, tuple[Any, ...]]] = [
        *((pyseccomp.ALLOW, name, ()) for name in _COMPUTING),
        *((ending, name, ()) for name in _ENDING),
        (pyseccomp.ALLOW, "openat", (arg(2, masked, writing, 0),)),
        (pyseccomp.ALLOW, "open", (arg(1, masked, writing, 0),)),
        (pyseccomp.ALLOW, "clone", (arg(0, masked, _CLONE_THREAD, _CLONE_THREAD),)),
        (ending, "clone", (arg(0, masked, _CLONE_THREAD, 0),)),
        (pyseccomp.ERRNO(errno.ENOSYS), "clone3", ()),  # the C library then takes clone, whose flags can be seen
        (pyseccomp.ERRNO(errno.ENOSYS), "openat2", ()),
        (pyseccomp.ERRNO(errno.ENOTTY), "ioctl", ()),
    ]
    for action, name, conditions in rules:
        try:
            made.add_rule(action, name, *conditions)
        except (OSError, ValueError):  # this machine has no such call
            continue
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
