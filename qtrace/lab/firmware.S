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

#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10
#define CHIP 0xfffe0000
#define PROGRAM 0x40
#define IN_SEGMENT(label) (label - _start + 0xff00) /* CS starts at 0xffff0000 after reset */

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
        lgdtl   %cs:IN_SEGMENT(gdt_pointer)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE_SELECTOR, $flat

        .code32
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

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      /* code: base 0, 4 GiB, 32-bit */
        .quad   0x00cf93000000ffff      /* data: base 0, 4 GiB */
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
#endif

        /* The first instruction after reset is fetched 16 bytes below 4 GiB. */
        .org    0xf0
        .code16
        jmp     real_mode
        .org    0x100
