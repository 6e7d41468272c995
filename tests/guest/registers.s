# SPDX-License-Identifier: Apache-2.0
# A program for a guest: are its vector registers its own?
# Ends with 0 if so, 1 if another process changed them, 2 if the CPU has no AVX, 3 if a signal's handler changed them.

.set SYS_rt_sigaction, 13
.set SYS_rt_sigreturn, 15
.set SYS_sched_yield, 24
.set SYS_getpid, 39
.set SYS_fork, 57
.set SYS_wait4, 61
.set SYS_kill, 62
.set SYS_exit_group, 231
.set SIGUSR1, 10
.set SA_RESTORER, 0x04000000
.set ROUNDS, 50

# fill: all registers from the pattern at (%rsp).
.macro fill
.irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vbroadcastss (%rsp), %ymm\number
.endr
.endm

# check LOST: goes to LOST unless they hold that pattern.
.macro check lost
.irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups %ymm\number, 32(%rsp)
    mov (%rsp), %eax
    lea 32(%rsp), %rdi
    mov $8, %ecx
    repe scasl
    jne \lost
.endr
.endm

.globl _start
_start:
    mov $1, %eax
    xor %ecx, %ecx
    cpuid
    and $0x18000000, %ecx           # OSXSAVE and AVX
    cmp $0x18000000, %ecx
    mov $2, %edi
    jne exit
    and $-32, %rsp
    sub $64, %rsp

    # Two processes, which give way to each other in turns.
    mov $SYS_fork, %eax
    syscall
    mov %eax, %ebx                  # 0 in the child
    mov $ROUNDS, %r12d
yields:
    imul $0x01010101, %r12d, %eax
    test %ebx, %ebx
    jz 1f
    not %eax
1:  mov %eax, (%rsp)
    fill
    mov $SYS_sched_yield, %eax
    syscall
    check lost_to_a_process
    dec %r12d
    jnz yields
    xor %edi, %edi
    test %ebx, %ebx
    jz exit
    mov $-1, %rdi
    lea 32(%rsp), %rsi
    xor %edx, %edx
    xor %r10d, %r10d
    mov $SYS_wait4, %eax
    syscall
    cmpl $0, 32(%rsp)
    jne lost_to_a_process

    # A handler that uses the same registers.
    lea on_signal(%rip), %rax
    mov %rax, 32(%rsp)
    movq $SA_RESTORER, 40(%rsp)
    lea restorer(%rip), %rax
    mov %rax, 48(%rsp)
    movq $0, 56(%rsp)
    mov $SIGUSR1, %edi
    lea 32(%rsp), %rsi
    xor %edx, %edx
    mov $8, %r10d
    mov $SYS_rt_sigaction, %eax
    syscall
    fill
    mov $SYS_getpid, %eax
    syscall
    mov %eax, %edi
    mov $SIGUSR1, %esi
    mov $SYS_kill, %eax
    syscall
    check lost_to_a_signal
    xor %edi, %edi
exit:
    mov $SYS_exit_group, %eax
    syscall

lost_to_a_process:
    mov $1, %edi
    jmp exit
lost_to_a_signal:
    mov $3, %edi
    jmp exit

on_signal:
    vzeroall
    ret
restorer:
    mov $SYS_rt_sigreturn, %eax
    syscall
