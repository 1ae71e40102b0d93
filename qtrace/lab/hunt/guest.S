/*
 * The hunt's guest: all the software of its virtual machine. It makes one device work, round after
 * round, and checks what it reads. Which device, and how, is in the words of `config`, which
 * guest_program.py fills in; what has happened lies in RAM from RESULTS on, which the host maps.
 *
 * The device is at PCI slot 3 (IDE's bus master in its own, 1.1). The second vCPU reads one of its
 * registers all the time, while the first one resets it: a value that differs from the first one
 * read is wrong. The disks are filled with PATTERN.
 *
 * Both flash chips are 64 KiB; of unit 0 the last SIZE bytes are used and shipped (guest.bin).
 * Rebuild it with gcc and binutils: python3 -m qtrace.lab.hunt.guest_program
 */

#define SIZE 0x1000
#include "flat_mode.S"

/* What guest_program.py knows too. */
#define ONCE 1
#define WRITES 2
#define WAITS 4
#define EMMC 8
#define PATTERN 0x05050505
#define RESULTS 0x1000
#define ROUNDS (RESULTS + 0x0)
#define CHECKED (RESULTS + 0x4)
#define WRONG (RESULTS + 0x8)
#define LAST_WRONG (RESULTS + 0xc)
#define FIRST (RESULTS + 0x10)
#define VERIFIED (RESULTS + 0x14)
#define CORRUPT (RESULTS + 0x18)
#define LAST_CORRUPT (RESULTS + 0x1c)

#define IO 0xc000       /* of BAR n: + n * 0x100 */
#define MMIO 0xfe000000 /* of BAR n: + n * 0x100000 */
#define BUS_MASTER 0xd000
#define RING 0x100000
#define AVAILABLE 0x101000
#define USED 0x102000
#define REQUEST 0x103000
#define REPLY 0x103800
#define DATA 0x104000
#define BYTES 4096
#define TABLES 0x110000
#define PATIENCE 20000

        .macro  ob port, value
        movw    $\port, %dx
        movb    $\value, %al
        outb    %al, %dx
        .endm
        .macro  ow port, value
        movw    $\port, %dx
        movw    $\value, %ax
        outw    %ax, %dx
        .endm
        .macro  ol port, value
        movw    $\port, %dx
        movl    $\value, %eax
        outl    %eax, %dx
        .endm
        .macro  pci_write function, register, value
        ol      0xcf8, (0x80000000 + \function * 0x100 + \register)
        ol      0xcfc, \value
        .endm

        .text
        .globl  _start
_start:
        .code16
        /* The other vCPU's first instruction: 0xff000 shows the same bytes. */
        ljmpw   $0xf000, $IN_SEGMENT(real_mode)
        .balign 16, 0x90
config:
device: .long   0
flags:  .long   0
pace:   .long   0 /* so many reads of port 0x80 between two rounds */
check:  .long   0 /* what the second vCPU reads: 1 a port, 2 memory */
check_at:
        .long   0

real_mode:
        cli
        enter_flat_mode
flat:
        movl    $DATA_SELECTOR, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $0x1b, %ecx /* IA32_APIC_BASE: is it the first one? */
        rdmsr
        testl   $0x100, %eax
        jz      second_vcpu
        movl    $0x200000, %esp
        call    place_bars
        cmpl    $0, check
        je      next_round
        /* INIT and SIPI to all others; the vector is the page of _start. */
        movl    $0xfee000f0, %edi
        movl    $0x1ff, (%edi)
        movl    $0xfee00300, %edi
        movl    $0x000c4500, (%edi)
        movl    $20000, %ecx
1:      loop    1b
        movl    $0x000c46ff, (%edi)
        movl    $5000, %ecx
1:      loop    1b
        movl    $0x000c46ff, (%edi)

next_round:
        movl    device, %eax
        call    *rounds(, %eax, 4)
        incl    ROUNDS
        testl   $ONCE, flags
        jnz     stand_still
        movl    pace, %ecx
        jecxz   next_round
1:      inb     $0x80, %al
        loop    1b
        jmp     next_round

nothing:
stand_still:
        hlt
        jmp     stand_still

second_vcpu:
        movl    $0x300000, %esp
        cmpl    $0, check
        je      stand_still
        call    read_register
        movl    %eax, FIRST
        movl    %eax, %ebx
1:      call    read_register
        incl    CHECKED
        cmpl    %eax, %ebx
        je      1b
        movl    %eax, LAST_WRONG
        incl    WRONG
        jmp     1b
read_register:
        movl    check_at, %edx
        cmpl    $1, check
        jne     1f
        inl     %dx, %eax
        ret
1:      movl    (%edx), %eax
        ret

/* Give each BAR of slot 3 its place, and of IDE's bus master its ports. */
place_bars:
        xorl    %ebx, %ebx
1:      leal    (0x80001810)(, %ebx, 4), %esi
        movl    %esi, %eax
        movw    $0xcf8, %dx
        outl    %eax, %dx
        movw    $0xcfc, %dx
        inl     %dx, %eax
        testl   $1, %eax
        jnz     2f
        movl    %eax, %edi
        movl    %ebx, %eax
        shll    $20, %eax
        addl    $MMIO, %eax
        outl    %eax, %dx
        andl    $6, %edi
        cmpl    $4, %edi
        jne     3f
        incl    %ebx /* the upper half of a 64-bit one */
        leal    (0x80001810)(, %ebx, 4), %eax
        movw    $0xcf8, %dx
        outl    %eax, %dx
        movw    $0xcfc, %dx
        xorl    %eax, %eax
        outl    %eax, %dx
        jmp     3f
2:      movl    %ebx, %eax
        shll    $8, %eax
        addl    $IO, %eax
        outl    %eax, %dx
3:      incl    %ebx
        cmpl    $6, %ebx
        jb      1b
        pci_write 0x18, 0x04, 7
        pci_write 0x09, 0x20, BUS_MASTER
        pci_write 0x09, 0x04, 5
        ret

/* Of what was read to DATA the first word. */
verify:
        incl    VERIFIED
        movl    DATA, %eax
        cmpl    $PATTERN, %eax
        je      1f
        movl    %eax, LAST_CORRUPT
        incl    CORRUPT
1:      ret

/* pflash: a byte to the second chip, which QEMU writes to its file meanwhile. */
pflash:
        movl    $0xfffe0000, %ebx
        movb    $0x40, (%ebx)
        movb    ROUNDS, %al
        movb    %al, (%ebx)
        movb    $0xff, (%ebx)
        ret

/* virtio, by its legacy registers: status at 0x12, queue at 0x0e, its page at 0x08, notify at 0x10. */
virtio_reset:
        ob      IO + 0x12, 0
        ret

virtio_blk:
        call    virtio_reset
        movl    $0, AVAILABLE /* or the device would take what is left there from before */
        movl    $0, USED
        movl    $0, DATA
        movb    $0xff, REPLY
        ob      IO + 0x12, 3
        ow      IO + 0x0e, 0
        ol      IO + 0x08, RING >> 12
        ob      IO + 0x12, 7
        movl    $RING, %edi
        movl    $16, %eax
        movl    $REQUEST, %ebx
        movl    $0x00010001, %ecx
        call    descriptor
        movl    $BYTES, %eax
        movl    $DATA, %ebx
        movl    $0x00020003, %ecx
        testl   $WRITES, flags
        jz      1f
        movl    $0x00020001, %ecx
1:      call    descriptor
        movl    $1, %eax
        movl    $REPLY, %ebx
        movl    $2, %ecx
        call    descriptor
        xorl    %eax, %eax
        testl   $WRITES, flags
        jz      1f
        incl    %eax
        movl    $PATTERN, DATA
1:      movl    %eax, REQUEST
        movl    $0, REQUEST + 4
        movl    ROUNDS, %eax
        andl    $0xfff, %eax
        shll    $3, %eax
        movl    %eax, REQUEST + 8
        movl    $0, REQUEST + 12
        xorl    %ebx, %ebx
        jmp     submit

/* Request queue 2; a READ(10) of LUN 0 of target 0. */
virtio_scsi:
        call    virtio_reset
        movl    $0, AVAILABLE /* or the device would take what is left there from before */
        movl    $0, USED
        movl    $0, DATA
        movb    $0, REPLY + 11
        ob      IO + 0x12, 3
        ow      IO + 0x0e, 2
        ol      IO + 0x08, RING >> 12
        ob      IO + 0x12, 7
        movl    $RING, %edi
        movl    $51, %eax
        movl    $REQUEST, %ebx
        movl    $0x00010001, %ecx
        call    descriptor
        movl    $108, %eax
        movl    $REPLY, %ebx
        movl    $0x00020003, %ecx
        call    descriptor
        movl    $BYTES, %eax
        movl    $DATA, %ebx
        movl    $2, %ecx
        call    descriptor
        movl    $REQUEST, %edi
        movl    $16, %ecx
        xorl    %eax, %eax
        cld
        rep stosl
        movl    $0x00400001, REQUEST /* LUN: 1, target 0, 0x40, 0 */
        movb    $0x28, REQUEST + 19
        movb    $8, REQUEST + 19 + 8
        movl    $2, %ebx

submit: /* to queue %ebx */
        movl    $0x00010000, AVAILABLE /* flags 0, index 1 */
        movl    $0, AVAILABLE + 4
        movl    $1, %ebp
again:
        movw    $(IO + 0x10), %dx
        movl    %ebx, %eax
        outw    %ax, %dx
        testl   $WAITS, flags
        jz      2f
        movl    $PATIENCE, %ecx
1:      cmpw    %bp, USED + 2
        je      3f
        inb     $0x80, %al
        loop    1b
2:      ret
3:      testl   %ebx, %ebx
        jz      verify
        cmpb    $0, REPLY + 10
        je      verify
        cmpl    $2, %ebp
        je      2b
        /* A unit attention: its reset. Once more. */
        incl    %ebp
        movw    %bp, AVAILABLE + 2
        jmp     again

descriptor: /* at %edi: %eax bytes at %ebx, flags and next in %ecx */
        movl    %ebx, (%edi)
        movl    $0, 4(%edi)
        movl    %eax, 8(%edi)
        movl    %ecx, 12(%edi)
        addl    $16, %edi
        ret

/* NVMe: enable it, have it identify itself, and disable it. */
nvme:
        movl    $MMIO, %edi
        movl    $0x00010001, 0x24(%edi)
        movl    $TABLES, 0x28(%edi)
        movl    $0, 0x2c(%edi)
        movl    $(TABLES + 0x1000), 0x30(%edi)
        movl    $0, 0x34(%edi)
        movl    $0x00460001, 0x14(%edi)
        movl    $0x00000006, TABLES
        movl    $0, TABLES + 4
        movl    $DATA, TABLES + 24
        movl    $0, TABLES + 28
        movl    $1, TABLES + 40
        movl    $1, 0x1000(%edi) /* the doorbell */
        movl    $0, 0x14(%edi)
        ret

/* AHCI: READ DMA EXT by port 0, and stop it. BAR 5. */
#define PORT (MMIO + 0x500000 + 0x100)
ahci:
        movl    $0x80000000, MMIO + 0x500004
        movl    $TABLES, PORT
        movl    $0, PORT + 4
        movl    $(TABLES + 0x1000), PORT + 8
        movl    $0, PORT + 12
        movl    $0x11, PORT + 0x18
        movl    $0x00010005, TABLES
        movl    $0, TABLES + 4
        movl    $(TABLES + 0x2000), TABLES + 8
        movl    $0, TABLES + 12
        movl    $0x00258027, TABLES + 0x2000
        movl    $0x40000000, TABLES + 0x2004
        movl    $0, TABLES + 0x2008
        movl    $8, TABLES + 0x200c
        movl    $0, TABLES + 0x2010
        movl    $DATA, TABLES + 0x2080
        movl    $0, TABLES + 0x2084
        movl    $0, TABLES + 0x2088
        movl    $(BYTES - 1), TABLES + 0x208c
        movl    $0, DATA
        movl    $0xffffffff, PORT + 0x10
        movl    $1, PORT + 0x38
        testl   $WAITS, flags
        jz      2f
        movl    $PATIENCE, %ecx
1:      testl   $1, PORT + 0x38
        jz      verify
        inb     $0x80, %al
        loop    1b
2:      movl    $0, PORT + 0x18
        movl    $1, PORT + 0x2c /* reset of the port */
        movl    $0, PORT + 0x2c
        ret

/* IDE: READ DMA of the first disk, waited for or broken off. */
ide:
        movl    $DATA, TABLES
        movl    $(0x80000000 + BYTES), TABLES + 4
        movl    $0, DATA
        ol      BUS_MASTER + 4, TABLES
        ob      BUS_MASTER + 2, 6
        ob      BUS_MASTER, 8
        ob      0x1f6, 0xe0
        ob      0x1f2, 8
        ob      0x1f3, 0
        ob      0x1f4, 0
        ob      0x1f5, 0
        ob      0x1f7, 0xc8
        ob      BUS_MASTER, 9
        testl   $WAITS, flags
        jz      2f
        movl    $PATIENCE, %ecx
        movw    $(BUS_MASTER + 2), %dx
1:      inb     %dx, %al
        testb   $1, %al
        jz      3f
        loop    1b
2:      ob      BUS_MASTER, 0
        ret
3:      ob      BUS_MASTER, 0
        jmp     verify

/* Floppy: a reset, and sector 1 without DMA. */
floppy:
        ob      0x3f2, 0
        ob      0x3f2, 0x14
        movl    $floppy_commands, %esi
        movl    $(3 + 9), %ebx
        movw    $0x3f5, %dx
        cld
1:      movl    $0x80, %eax
        call    floppy_ready
        jne     4f
        lodsb
        outb    %al, %dx
        decl    %ebx
        jnz     1b
        movl    $DATA, %edi
        movl    $512, %ebx
2:      movl    $0xc0, %eax
        call    floppy_ready
        jne     4f
        inb     %dx, %al
        stosb
        decl    %ebx
        jnz     2b
        movl    $7, %ebx
3:      movl    $0xc0, %eax
        call    floppy_ready
        jne     4f
        inb     %dx, %al
        decl    %ebx
        jnz     3b
        jmp     verify
4:      ret
floppy_commands:
        .byte   0x03, 0xdf, 0x03
        .byte   0x46, 0, 0, 0, 1, 2, 1, 0x1b, 0xff
floppy_ready: /* equal when the main status register has the bits of %eax, of 0xc0 */
        pushl   %edx
        movl    %eax, %ebp
        movl    $PATIENCE, %ecx
        movw    $0x3f4, %dx
1:      inb     %dx, %al
        andl    $0xc0, %eax
        cmpl    %eax, %ebp
        loopne  1b
        popl    %edx
        ret

/* SD card, or eMMC, of an SDHCI: from its reset to two blocks that are read by the buffer's port. */
        .macro  sd command, argument
        movl    $\argument, %eax
        movl    $\command, %ecx
        call    sd_command
        .endm
sd:
        movl    $MMIO, %edi
        movb    $1, 0x2f(%edi)
        movw    $5, 0x2c(%edi)
        movb    $0x0f, 0x29(%edi)
        movl    $0xffffffff, 0x34(%edi)
        sd      0x0000, 0
        testl   $EMMC, flags
        jnz     1f
        sd      0x081a, 0x1aa
        sd      0x371a, 0
        sd      0x2902, 0x40ff8000
        sd      0x371a, 0
        sd      0x2902, 0x40ff8000
        jmp     2f
1:      sd      0x0102, 0x40ff8000
        sd      0x0102, 0x40ff8000
2:      sd      0x0209, 0
        sd      0x031a, 0x00010000
        movl    0x10(%edi), %ebx
        testl   $EMMC, flags
        jz      3f
        movl    $0x00010000, %ebx
3:      andl    $0xffff0000, %ebx
        movl    %ebx, %eax
        movl    $0x071b, %ecx
        call    sd_command
        movl    $0x00020200, 0x04(%edi) /* two blocks of 512 bytes */
        movl    $0, 0x08(%edi)
        movl    $0x123a0032, 0x0c(%edi) /* CMD18: several blocks, counted, read */
        movl    $2, %ebx
4:      movl    $PATIENCE, %ecx
5:      testl   $0x800, 0x24(%edi) /* buffer can be read */
        jnz     6f
        inb     $0x80, %al
        loop    5b
        ret
6:      movl    $128, %ecx
7:      movl    0x20(%edi), %eax
        loop    7b
        movl    %eax, DATA
        call    verify
        decl    %ebx
        jnz     4b
        sd      0x0c1b, 0
        ret
sd_command: /* %ecx with the argument %eax */
        movl    $0xffffffff, 0x30(%edi)
        movl    %eax, 0x08(%edi)
        movw    $0, 0x0c(%edi)
        movw    %cx, 0x0e(%edi)
        ret

/* UHCI: a reset of its bus, which the disk at it goes through, and of itself. BAR 4. */
uhci:
        ow      IO + 0x400, 4
        ow      IO + 0x400, 0
        ow      IO + 0x400, 2
        ret

/* LSI 53c895a: a reset of the SCSI bus and of the chip. */
lsi:
        ob      IO + 0x01, 8
        ob      IO + 0x01, 0
        ob      IO + 0x14, 0x40
        ob      IO + 0x14, 0
        ret

/* MegaRAID: abort what there is, and be ready again. */
megasas:
        movl    $1, MMIO + 0x20
        movl    $2, MMIO + 0x20
        movl    $8, MMIO + 0x20
        ret

/* Fusion MPT: a reset of the message unit. */
mptsas:
        ol      IO, 0x40000000
        ret

/* ACPI: eject slot 6, now and then. */
eject:
        testl   $0x3ff, ROUNDS
        jnz     1f
        ol      0xae10, 0
        ol      0xae08, 0x40
1:      inb     $0x80, %al
        ret

        /* In the order of ROUTINES in guest_program.py. */
        .balign 4
rounds:
        .long   nothing, pflash, virtio_reset, virtio_blk, virtio_scsi, nvme, ahci, ide, floppy
        .long   sd, uhci, lsi, megasas, mptsas, eject

        flat_segments
        reset_vector
