// The guest of vmm's tests: PID 1 of a stock kernel, linked statically, with no other program
// beside it. It counts every 10 ms, so that a test can see whether a restored guest goes on where
// it stood, and answers one-line questions on the port named hearth.agent:
//   count           -> count N
//   dirty PAGES     -> dirtied PAGES   (fresh pages, each with its own number in it)
//   sum             -> sum N           (of those numbers: is the memory still what it was?)
//   zero            -> zeroed PAGES    (the same pages, overwritten with zeroes)
//   disks           -> disks NAME=SERIAL ...
//   put TEXT        -> put             (TEXT to the first sector of the disk "overlay")
//   get             -> get TEXT
//   net             -> net INTERFACE ...
//   off             -> (the machine is switched off)
//   anything else   -> itself
// It knows nothing of Hearth's agent or its protocol.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int console;

static void say(const char *text) {
    if (write(console, text, strlen(text)) < 0) { /* nobody to tell */ }
}

static long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void read_line(const char *path, char *into, size_t size) {
    into[0] = 0;
    int fd = open(path, O_RDONLY);
    if (fd < 0) return;
    ssize_t n = read(fd, into, size - 1);
    close(fd);
    if (n < 0) n = 0;
    into[n] = 0;
    into[strcspn(into, "\n")] = 0;
}

static void load_modules(void) {
    FILE *list = fopen("/modules/order", "r");
    char path[256];
    while (list && fgets(path, sizeof path, list)) {
        path[strcspn(path, "\n")] = 0;
        int fd = open(path, O_RDONLY);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0) {
            char text[300];
            snprintf(text, sizeof text, "guest: module %s: %s\n", path, strerror(errno));
            say(text);
        }
        close(fd);
    }
}

// Not always /dev/vport0p1: found by the port's name.
static int open_port(void) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    while (ports && (entry = readdir(ports))) {
        char path[512], name[64];
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        read_line(path, name, sizeof name);
        if (strcmp(name, "hearth.agent") != 0) continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        return open(path, O_RDWR);
    }
    return -1;
}

static void list_disks(char *answer, size_t size, char *overlay, size_t overlay_size) {
    snprintf(answer, size, "disks");
    overlay[0] = 0;
    DIR *disks = opendir("/sys/block");
    struct dirent *entry;
    while (disks && (entry = readdir(disks))) {
        char path[512], serial[64];
        snprintf(path, sizeof path, "/sys/block/%s/serial", entry->d_name);
        read_line(path, serial, sizeof serial);
        if (!serial[0]) continue;
        snprintf(answer + strlen(answer), size - strlen(answer), " %s=%s", entry->d_name, serial);
        if (strcmp(serial, "overlay") == 0) snprintf(overlay, overlay_size, "/dev/%s", entry->d_name);
    }
    if (disks) closedir(disks);
}

static void list_net(char *answer, size_t size) {
    snprintf(answer, size, "net");
    DIR *nets = opendir("/sys/class/net");
    struct dirent *entry;
    while (nets && (entry = readdir(nets)))
        if (entry->d_name[0] != '.')
            snprintf(answer + strlen(answer), size - strlen(answer), " %s", entry->d_name);
    if (nets) closedir(nets);
}

static long count;
static char *dirty;
static long dirty_pages;

static void answer_line(const char *line, char *answer, size_t size) {
    char overlay[300], scratch[512];
    static char sector[4096] __attribute__((aligned(4096)));
    if (strcmp(line, "count") == 0) {
        snprintf(answer, size, "count %ld", count);
    } else if (strncmp(line, "dirty ", 6) == 0) {
        dirty_pages = atol(line + 6);
        dirty = mmap(NULL, dirty_pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (long i = 0; i < dirty_pages; i++) *(long *)(dirty + i * 4096) = i + 1;
        snprintf(answer, size, "dirtied %ld", dirty_pages);
    } else if (strcmp(line, "sum") == 0) {
        long sum = 0;
        for (long i = 0; i < dirty_pages; i++) sum += *(long *)(dirty + i * 4096);
        snprintf(answer, size, "sum %ld", sum);
    } else if (strcmp(line, "zero") == 0) {
        memset(dirty, 0, dirty_pages * 4096);
        snprintf(answer, size, "zeroed %ld", dirty_pages);
    } else if (strcmp(line, "disks") == 0) {
        list_disks(answer, size, overlay, sizeof overlay);
    } else if (strncmp(line, "put ", 4) == 0) {
        list_disks(scratch, sizeof scratch, overlay, sizeof overlay);
        int fd = open(overlay, O_WRONLY | O_DIRECT);
        memset(sector, 0, sizeof sector);
        snprintf(sector, sizeof sector, "%s", line + 4);
        ssize_t n = write(fd, sector, sizeof sector);
        snprintf(answer, size, n == sizeof sector ? "put" : "put failed: %s", strerror(errno));
        close(fd);
    } else if (strcmp(line, "get") == 0) {
        list_disks(scratch, sizeof scratch, overlay, sizeof overlay);
        int fd = open(overlay, O_RDONLY | O_DIRECT);
        if (read(fd, sector, sizeof sector) < 0) sector[0] = 0;
        snprintf(answer, size, "get %.200s", sector);
        close(fd);
    } else if (strcmp(line, "net") == 0) {
        list_net(answer, size);
    } else if (strcmp(line, "off") == 0) {
        reboot(RB_POWER_OFF);
    } else {
        snprintf(answer, size, "%s", line);
    }
}

int main(void) {
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mount("dev", "/dev", "devtmpfs", 0, "");
    mount("proc", "/proc", "proc", 0, "");
    mount("sys", "/sys", "sysfs", 0, "");
    console = open("/dev/console", O_RDWR);
    say("guest: init\n");
    load_modules();
    int port = -1;
    for (int tries = 0; port < 0 && tries < 1000; tries++) {
        port = open_port();
        if (port < 0) usleep(5000);
    }
    say(port < 0 ? "guest: no port named hearth.agent\n" : "guest: ready\n");

    char line[512], answer[1024];
    size_t have = 0;
    long next_tick = now_ms() + 10;
    for (;;) {
        long wait = next_tick - now_ms();
        if (wait <= 0) {
            next_tick = now_ms() + 10;
            count++;
            if (count % 100 == 0) {
                snprintf(answer, sizeof answer, "guest: count %ld\n", count);
                say(answer);
            }
            continue;
        }
        struct pollfd p = {.fd = port, .events = POLLIN};
        if (poll(&p, 1, wait) <= 0) continue;
        ssize_t n = read(port, line + have, 1);
        if (n <= 0) {
            // The host end is closed: reads return 0 at once until it connects again.
            have = 0;
            usleep(2000);
            continue;
        }
        if (line[have] != '\n') {
            if (have < sizeof line - 2) have++;
            continue;
        }
        line[have] = 0;
        have = 0;
        answer_line(line, answer, sizeof answer - 1);
        strcat(answer, "\n");
        if (write(port, answer, strlen(answer)) < 0) say("guest: answer was lost\n");
    }
}
