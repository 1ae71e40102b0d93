"""Names of the system calls, and which of them sleep (x86-64 numbers).

Made by hand: seccomp's library, which knows them, is the distribution's, and no package of PyPI's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

KVM_RUN = 0xAE80
# A vCPU thread in this one is not waiting: its guest runs, or is halted.
RUNNING_GUEST = "ioctl(KVM_RUN)"

# asm/unistd_64.h of Linux 6.18, in the order of the numbers: from 0 on, and from 424 on. Numbers
# never change, and new ones come at the end.
_FROM_0 = """
    read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction
    rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select
    sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep
    getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg
    recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt
    clone fork vfork execve exit wait4 kill uname semget semop semctl shmdt msgget msgsnd
    msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate getdents getcwd chdir
    fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown
    lchown umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid syslog getgid
    setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups
    setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid
    capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack
    utime mknod uselib personality ustat statfs fstatfs sysfs getpriority setpriority
    sched_setparam sched_getparam sched_setscheduler sched_getscheduler
    sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock
    mlockall munlockall vhangup modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex
    setrlimit chroot sync acct settimeofday mount umount2 swapon swapoff reboot sethostname
    setdomainname iopl ioperm create_module init_module delete_module get_kernel_syms
    query_module quotactl nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid
    readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr
    flistxattr removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity
    sched_getaffinity set_thread_area io_setup io_destroy io_getevents io_submit io_cancel
    get_thread_area lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old
    remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime
    clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes
    vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive
    mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl ioprio_set
    ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat
    mknodat fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat
    fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice tee
    sync_file_range vmsplice move_pages utimensat epoll_pwait signalfd timerfd_create
    eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2
    epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open
    recvmmsg fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at
    clock_adjtime syncfs sendmmsg setns getcpu process_vm_readv process_vm_writev kcmp
    finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create
    kexec_file_load bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2
    pwritev2 pkey_mprotect pkey_alloc pkey_free statx io_pgetevents rseq uretprobe
"""
_FROM_424 = """
    pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount
    fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd
    faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd
    landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret
    process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2
    map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount
    lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat
    listxattrat removexattrat open_tree_attr file_getattr file_setattr
"""
NAMES = {**dict(enumerate(_FROM_0.split())), **dict(enumerate(_FROM_424.split(), 424))}
# asm-generic/unistd.h, which aarch64 has: from 0 on, and from 260 on; the same ones from 424 on.
_GENERIC_FROM_0 = """
    io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr
    lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr
    getcwd lookup_dcookie eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 fcntl
    inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get flock mknodat
    mkdirat unlinkat symlinkat linkat renameat umount2 mount pivot_root nfsservctl statfs
    fstatfs truncate ftruncate fallocate faccessat chdir fchdir chroot fchmod fchmodat fchownat
    fchown openat close vhangup pipe2 quotactl getdents64 lseek read write readv writev pread64
    pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4 vmsplice splice tee readlinkat
    newfstatat fstat sync fsync fdatasync sync_file_range timerfd_create timerfd_settime
    timerfd_gettime utimensat acct capget capset personality exit exit_group waitid
    set_tid_address unshare futex set_robust_list get_robust_list nanosleep getitimer setitimer
    kexec_load init_module delete_module timer_create timer_gettime timer_getoverrun
    timer_settime timer_delete clock_settime clock_gettime clock_getres clock_nanosleep syslog
    ptrace sched_setparam sched_setscheduler sched_getscheduler sched_getparam
    sched_setaffinity sched_getaffinity sched_yield sched_get_priority_max
    sched_get_priority_min sched_rr_get_interval restart_syscall kill tkill tgkill sigaltstack
    rt_sigsuspend rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo
    rt_sigreturn setpriority getpriority reboot setregid setgid setreuid setuid setresuid
    getresuid setresgid getresgid setfsuid setfsgid times setpgid getpgid getsid setsid
    getgroups setgroups uname sethostname setdomainname getrlimit setrlimit getrusage umask
    prctl getcpu gettimeofday settimeofday adjtimex getpid getppid getuid geteuid getgid getegid
    gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr msgget
    msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl shmat shmdt socket
    socketpair bind listen accept connect getsockname getpeername sendto recvfrom setsockopt
    getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap add_key request_key keyctl
    clone execve mmap fadvise64 swapon swapoff mprotect msync mlock munlock mlockall munlockall
    mincore madvise remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages
    rt_tgsigqueueinfo perf_event_open accept4 recvmmsg
"""
_GENERIC_FROM_260 = """
    wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at open_by_handle_at
    clock_adjtime syncfs setns sendmmsg process_vm_readv process_vm_writev kcmp finit_module
    sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat
    userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc
    pkey_free statx io_pgetevents rseq kexec_file_load
"""
GENERIC_NAMES = {
    **dict(enumerate(_GENERIC_FROM_0.split())),
    **dict(enumerate(_GENERIC_FROM_260.split(), 260)),
    **dict(enumerate(_FROM_424.split(), 424)),
}


def syscall_name(
    number: int, second_argument: int = 0, names: Mapping[int, str] = NAMES
) -> str:  # fmt: skip
    """The call's name; ``syscall 600`` when it is newer than this table.

    Args:
        names: an architecture's (``Architecture.system_calls``).
    """
    name = names.get(number, f"syscall {number}")
    return RUNNING_GUEST if name == "ioctl" and second_argument == KVM_RUN else name


# What a system call that sleeps returns when a signal (a debugger's stop, the end of the process)
# comes: -EINTR, or that it goes on later (-ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND,
# -ERESTART_RESTARTBLOCK).
INTERRUPTED = frozenset({-4, -512, -513, -514, -516})
RESTART = "restart_syscall"
# Those with a time-out; a name before any that it contains.
RESTARTED = ("futex", "clock_nanosleep", "nanosleep", "ppoll", "poll")
# Which argument says how much is wanted, of calls that return how much of it there was when a
# signal came: bytes, or requests and events of asynchronous I/O.
WANTED = {
    0: 2, 1: 2, 17: 2, 18: 2, 40: 3, 44: 2, 208: 1, 209: 1, 275: 4, 276: 2, 326: 4, 333: 1,
}  # fmt: skip
# ... of which it does not say so: a list of pieces.
PIECES = frozenset({19, 20, 46, 278, 295, 296, 307, 327, 328})
IO_URING_ENTER, GETEVENTS = 426, 1


# Which sleep for a time, and which argument of those that wait for descriptors limits that: a
# number of milliseconds, or the address of one that tells (0: for ever).
SLEEPS = frozenset({35, 230})
MILLISECONDS = {7: 2, 232: 3, 281: 3}
TIMES = {23: 4, 270: 4, 271: 2, 441: 3}


def has_time_limit(number: int, arguments: Sequence[int]) -> bool:
    """Whether a thread that sleeps in a system call goes on by itself after a time: in nanosleep,
    and in poll, select and epoll_wait with a limit. (A futex may be an idle worker's.)"""
    if number in MILLISECONDS:
        limit = arguments[MILLISECONDS[number]] & 0xFFFFFFFF
        return 0 < limit < 1 << 31
    return number in SLEEPS or (number in TIMES and arguments[TIMES[number]] != 0)


def sleeps(number: int, result: int, arguments: Sequence[int]) -> bool:
    """Whether a stopped thread in a system call slept there, by what rax holds; also when it may
    have slept, and may have been on its way out of the kernel.

    A signal makes a call that sleeps return: that it was interrupted, or how much it had done by
    then. Any other result is that of a call that had returned: the thread runs.

    Args:
        number: of the call.
        arguments: its six.
    """
    if result >> 63:
        return result - (1 << 64) in INTERRUPTED
    if number == IO_URING_ENTER:
        # io_uring_enter(2): how many were submitted, whatever came of the wait for completions.
        _ring, submitted, awaited, flags, *_rest = arguments
        return bool(result and submitted and awaited and flags & GETEVENTS)
    if number in WANTED:
        return 0 < result < arguments[WANTED[number]]
    return number in PIECES and result > 0


def restarted(name: str, frames: Iterable[str]) -> str:
    """What ``restart_syscall`` was: the C library's innermost function that has a name tells.

    Since glibc 2.41 each call that can be cancelled is made by a nameless function of its own.
    """
    if name != RESTART:
        return name
    named = (frame.partition("+")[0] for frame in frames if ".so" not in frame)
    function = next(named, "")
    if function.startswith(("pthread_cond_", "__futex", "__lll_lock", "sem_")):
        return "futex"
    return next((call for call in RESTARTED if call in function), name)
