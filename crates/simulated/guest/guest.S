/*
 * A guest without a kernel: what a VMM is measured and checked with where no Linux guest runs.
 *
 * It is entered in 64-bit mode with the first GiB mapped one to one, says what it is on the first
 * serial port, touches its pages once in its order, and then does what AFTER says:
 *
 *   COUNT  sleeps (hlt) between the interrupts of the PIT, HZ times a second; at each it touches
 *          PER_TICK more pages of the order and prints `tick N`. N is kept in a register and in
 *          memory: where they differ, registers and memory come from two different moments, and it
 *          prints `torn` instead.
 *   LISTEN as COUNT, and can be called over vsock (listen.c).
 *   HALT   prints `halted` and sleeps for ever with interrupts off.
 *   SPIN   prints `spinning` and takes the whole CPU.
 *
 * Touching page i means writing two words at its start: MARK + i, and the number of the tick. The
 * order is i = (n * STEP) mod PAGES; page i lies at BASE + i * STRIDE * 4096.
 *
 * Set by -D, see src/guest.rs: PAGES, STRIDE, STEP, PER_TICK, HZ, and one of AFTER_COUNT,
 * AFTER_LISTEN (AFTER_COUNT too), AFTER_HALT, AFTER_SPIN. The words after `hearth-guest-1` in .note say the same to a simulated
 * VMM, which does not execute this but does what it would.
 */
        .intel_syntax noprefix
        .code64

        .equ    SERIAL, 0x3f8
        .equ    PIC1, 0x20
        .equ    PIC2, 0xa0
        .equ    PIT, 0x40
        .equ    PIT_HZ, 1193182
        .equ    BASE, 0x1000000         /* 16 MiB: well above what is loaded */
        .equ    PAGE, 4096

        .section .text, "ax"
        .global _start
_start:
        cli
        cld
        lea     rsp, stack_top[rip]
        lea     rsi, ready[rip]
        call    print
        mov     eax, PAGES
        call    print_number
        call    print_newline

        xor     r12, r12                /* the tick */
        xor     r13, r13                /* the page that is touched next */
        mov     ecx, PAGES
        call    touch

#if defined(AFTER_COUNT)
#if defined(AFTER_LISTEN)
        call    listen_start
#endif
        call    start_clock
1:      sti
        hlt                             /* sti takes effect after hlt: no tick is missed */
        cli
        cmp     dword ptr fired[rip], 0
        je      1b
        mov     dword ptr fired[rip], 0
        call    count
#if defined(AFTER_LISTEN)
        call    listen_look
#endif
        jmp     1b
#elif defined(AFTER_HALT)
        lea     rsi, halted[rip]
        call    print
1:      hlt
        jmp     1b
#elif defined(AFTER_SPIN)
        lea     rsi, spinning[rip]
        call    print
1:      pause
        jmp     1b
#else
#error "set one of AFTER_COUNT, AFTER_HALT, AFTER_SPIN"
#endif

/* Touches the next ecx pages of the order. */
touch:
        test    ecx, ecx
        jz      2f
1:      mov     rax, r13
        imul    rax, rax, STRIDE * PAGE
        add     rax, BASE
        mov     rdx, mark[rip]
        add     rdx, r13
        mov     [rax], rdx
        mov     [rax + 8], r12
        add     r13, STEP
        cmp     r13, PAGES
        jb      3f
        sub     r13, PAGES
3:      dec     ecx
        jnz     1b
2:      ret

#if defined(AFTER_COUNT)
/* One tick: registers and memory must agree on what the last one was. */
count:
        cmp     r12, ticks[rip]
        jne     1f
        inc     r12
        mov     ticks[rip], r12
        mov     ecx, PER_TICK
        call    touch
        lea     rsi, tick[rip]
        call    print
        mov     rax, r12
        call    print_number
        jmp     print_newline
1:      lea     rsi, torn[rip]
        jmp     print

/* Lets the PIT interrupt through vector 0x20. Whatever else comes is ignored. */
start_clock:
        lea     rdi, idt[rip]
        lea     rax, on_other[rip]
        xor     ecx, ecx
1:      call    set_gate
        inc     ecx
        cmp     ecx, 0x30
        jb      1b
        lea     rax, on_clock[rip]
        lea     rdi, idt[rip + 0x20 * 16]
        call    set_gate
        lidt    idt_pointer[rip]

        mov     al, 0x11                /* both PICs: vectors 0x20 and 0x28, edge, cascaded at 2 */
        out     PIC1, al
        out     PIC2, al
        mov     al, 0x20
        out     PIC1 + 1, al
        mov     al, 0x28
        out     PIC2 + 1, al
        mov     al, 4
        out     PIC1 + 1, al
        mov     al, 2
        out     PIC2 + 1, al
        mov     al, 1
        out     PIC1 + 1, al
        out     PIC2 + 1, al
        mov     al, 0xfe                /* only the clock */
        out     PIC1 + 1, al
        mov     al, 0xff
        out     PIC2 + 1, al

        mov     al, 0x34                /* channel 0, both bytes, rate generator */
        out     PIT + 3, al
        mov     al, (PIT_HZ / HZ) & 0xff
        out     PIT, al
        mov     al, (PIT_HZ / HZ) >> 8
        out     PIT, al
        ret

/* The gate at rdi leads to rax; rdi goes on to the next one. */
set_gate:
        mov     [rdi], ax
        mov     dx, cs
        mov     [rdi + 2], dx
        mov     word ptr [rdi + 4], 0x8e00
        mov     rdx, rax
        shr     rdx, 16
        mov     [rdi + 6], rdx
        mov     dword ptr [rdi + 12], 0
        add     rdi, 16
        ret

on_clock:
        push    rax
        mov     dword ptr fired[rip], 1
        mov     al, 0x20
        out     PIC1, al
        pop     rax
on_other:
        iretq
#endif

/* Prints the text at rsi, which ends with a zero. */
print:
        mov     dx, SERIAL
1:      lodsb
        test    al, al
        jz      2f
        out     dx, al
        jmp     1b
2:      ret

/* Prints rax in decimal. */
print_number:
        lea     rsi, digits_end[rip]
        mov     ecx, 10
1:      xor     edx, edx
        div     rcx
        add     dl, '0'
        dec     rsi
        mov     [rsi], dl
        test    rax, rax
        jnz     1b
        jmp     print

print_newline:
        lea     rsi, newline[rip]
        jmp     print

        .section .data, "aw"
        .balign 16
mark:   .quad   0x6865617274680000      /* "hearth", then the page's number */
ticks:  .quad   0
fired:  .long   0
ready:  .asciz  "hearth guest: pages "
tick:   .asciz  "tick "
torn:   .asciz  "torn\n"
halted: .asciz  "halted\n"
spinning:
        .asciz  "spinning\n"
newline:
        .asciz  "\n"
digits: .skip   20
digits_end:
        .byte   0

        .balign 16
idt:    .skip   0x30 * 16
idt_pointer:
        .word   0x30 * 16 - 1
        .quad   idt

        .balign 16
        .skip   4096
stack_top:

        .balign 8
note:   .ascii  "hearth-guest-1 "
        .ascii  PARAMETERS
        .byte   10
