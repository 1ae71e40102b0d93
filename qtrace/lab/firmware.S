/*
 * The laboratory's guest: all the software its virtual machine runs.
 *
 * The default build counts in flash. Each turn of its loop writes the program command
 * (0x40) and then a 32-bit number to the second pflash chip; QEMU's pflash_update() answers
 * with a synchronous blk_pwrite(), which takes the vCPU thread through aio_poll(). The number
 * counts the turns: the first four bytes of the chip's image file tell how many there were.
 *
 * With IDLE defined the vCPU halts at once: the same machine without that device access.
 *
 * Both chips are 64 KiB. Unit 0 ends at 4 GiB, holds this code and is only read; unit 1 lies
 * directly below it. Code must not run from the chip it programs: while a command is under
 * way every access to that chip traps and reads as status.
 *
 * Only the last 256 bytes of unit 0 are used and shipped (firmware-*.bin); firmware.py pads
 * them to a chip. Rebuild both with gcc and binutils: python3 -m qtrace.lab.firmware
 */

#define SIZE 0x100
#include "flat_mode.S"

#define CHIP 0xfffe0000
#define PROGRAM 0x40

        .text
        .globl  _start
_start:
        .code16
real_mode:
        cli
#ifdef IDLE
1:      hlt
        jmp     1b
#else
        /* Flat 32-bit segments: the chip is far above what real mode reaches. */
        enter_flat_mode

flat:
        movl    $DATA_SELECTOR, %eax
        movl    %eax, %ds
        movl    $CHIP, %edi
        xorl    %eax, %eax
program:
        incl    %eax
        movb    $PROGRAM, (%edi)
        movl    %eax, (%edi)
        jmp     program

        flat_segments
#endif

        reset_vector
