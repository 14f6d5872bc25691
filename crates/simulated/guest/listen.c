/*
 * The guest without a kernel as one that can be called: a driver for a virtio-mmio vsock device and
 * a service that sends back what it is sent. It listens on port 52, as Hearth's agent does, and
 * resets connections to any other. It prints `listening` when it can be called, and `reset` when the
 * host has told it that all its connections are gone, as it does once after every snapshot.
 *
 * No interrupt of the device is used: the clock's interrupt wakes the guest (guest.S), and it looks.
 * It keeps no more than it must: one buffer at a time is sent, and a caller gets all the credit
 * there is.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { QUEUE_RX, QUEUE_TX, QUEUE_EVENT, QUEUES };
enum { SIZE = 8, BUFFER = 4096, CALLERS = 32, PORT = 52, HOST = 2, STREAM = 1 };
enum { OP_REQUEST = 1, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST };

/* Offsets of a virtio-mmio device's registers. */
enum {
	MAGIC = 0x000, DEVICE_ID = 0x008, DRIVER_FEATURES = 0x020, DRIVER_FEATURES_SEL = 0x024, QUEUE_SEL = 0x030,
	QUEUE_NUM = 0x038, QUEUE_READY = 0x044, QUEUE_NOTIFY = 0x050, STATUS = 0x070, QUEUE_DESC = 0x080,
	QUEUE_AVAIL = 0x090, QUEUE_USED = 0x0a0, CONFIG = 0x100,
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

/* Where Firecracker puts its devices: a page each. */
static const u64 FIRST_DEVICE = 0xc0001000, DEVICES = 16, VIRT = 0x74726976, VSOCK = 19;

struct descriptor { u64 address; u32 len; u16 flags, next; };
struct available { u16 flags, index, ring[SIZE], unused; };
struct used { u16 flags, index; struct { u32 id, len; } ring[SIZE]; u16 unused; };

struct queue {
	struct descriptor descriptors[SIZE] __attribute__((aligned(16)));
	struct available available __attribute__((aligned(16)));
	struct used used __attribute__((aligned(16)));
	u16 seen;
	u8 buffers[SIZE][BUFFER] __attribute__((aligned(16)));
};

struct header {
	u64 from_cid, to_cid;
	u32 from_port, to_port, len;
	u16 type, op;
	u32 flags, credit, consumed;
} __attribute__((packed));

struct caller { u32 port, consumed; };

static volatile struct queue queues[QUEUES];
static u64 high[512] __attribute__((aligned(4096)));
static struct caller callers[CALLERS];
static u64 device;
static u64 cid;

static void write_register(u64 at, u32 value) { *(volatile u32 *)(device + at) = value; }
static u32 read_register(u64 at) { return *(volatile u32 *)(device + at); }

static void say(const char *text)
{
	for (; *text; text++)
		__asm__ volatile("outb %0, %1" : : "a"(*text), "Nd"((u16)0x3f8));
}

/* Maps the fourth GiB, where the devices are: only the first is mapped at the entry. */
static void map_devices(void)
{
	u64 tables, page;
	for (page = 0; page < 512; page++)
		high[page] = (3ull << 30) + (page << 21) + 0x9b; /* large, uncached, writable, present */
	__asm__ volatile("mov %%cr3, %0" : "=r"(tables));
	u64 *fourth = (u64 *)(*(u64 *)tables & ~0xfffull) + 3;
	*(volatile u64 *)fourth = (u64)high | 3;
	__asm__ volatile("mov %0, %%cr3" : : "r"(tables) : "memory");
}

/* Gives a buffer to the device. */
static void offer(int queue, u16 buffer, u32 len, u16 flags)
{
	volatile struct queue *q = &queues[queue];
	q->descriptors[buffer].address = (u64)q->buffers[buffer];
	q->descriptors[buffer].len = len;
	q->descriptors[buffer].flags = flags;
	q->available.ring[q->available.index % SIZE] = buffer;
	__asm__ volatile("mfence" : : : "memory");
	q->available.index++;
	__asm__ volatile("mfence" : : : "memory");
}

static void set_up_queue(int queue)
{
	volatile struct queue *q = &queues[queue];
	u64 parts[3] = { (u64)q->descriptors, (u64)&q->available, (u64)&q->used };
	static const u32 at[3] = { QUEUE_DESC, QUEUE_AVAIL, QUEUE_USED };
	int part;
	write_register(QUEUE_SEL, queue);
	write_register(QUEUE_NUM, SIZE);
	for (part = 0; part < 3; part++) {
		write_register(at[part], (u32)parts[part]);
		write_register(at[part] + 4, (u32)(parts[part] >> 32));
	}
	q->available.flags = 1; /* no interrupts */
	write_register(QUEUE_READY, 1);
}

void listen_start(void)
{
	u64 number;
	u16 buffer;
	int queue;
	map_devices();
	for (number = 0; number < DEVICES; number++) {
		device = FIRST_DEVICE + number * 0x1000;
		if (read_register(MAGIC) == VIRT && read_register(DEVICE_ID) == VSOCK)
			break;
	}
	if (number == DEVICES) {
		device = 0;
		say("no vsock\n");
		return;
	}
	write_register(STATUS, 0);
	write_register(STATUS, ACKNOWLEDGE); /* step by step: Firecracker takes no other way */
	write_register(STATUS, ACKNOWLEDGE | DRIVER);
	write_register(DRIVER_FEATURES_SEL, 0);
	write_register(DRIVER_FEATURES, 0);
	write_register(DRIVER_FEATURES_SEL, 1);
	write_register(DRIVER_FEATURES, 1); /* version 1, and nothing else */
	write_register(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	for (queue = 0; queue < QUEUES; queue++)
		set_up_queue(queue);
	cid = read_register(CONFIG) | (u64)read_register(CONFIG + 4) << 32;
	for (buffer = 0; buffer < SIZE; buffer++) {
		offer(QUEUE_RX, buffer, BUFFER, 2);
		offer(QUEUE_EVENT, buffer, 4, 2);
	}
	write_register(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	write_register(QUEUE_NOTIFY, QUEUE_RX);
	write_register(QUEUE_NOTIFY, QUEUE_EVENT);
	say("listening\n");
}

/* Sends a packet back to where `to` came from, and waits until the device has taken it. */
static void answer(volatile struct header *to, u16 op, volatile u8 *data, u32 len, u32 consumed)
{
	volatile struct queue *q = &queues[QUEUE_TX];
	volatile struct header *packet = (volatile struct header *)q->buffers[0];
	u32 at;
	packet->from_cid = cid;
	packet->to_cid = HOST;
	packet->from_port = to->to_port;
	packet->to_port = to->from_port;
	packet->len = len;
	packet->type = STREAM;
	packet->op = op;
	packet->flags = 0;
	packet->credit = 1 << 20;
	packet->consumed = consumed;
	for (at = 0; at < len; at++)
		q->buffers[0][sizeof *packet + at] = data[at];
	offer(QUEUE_TX, 0, sizeof *packet + len, 0);
	write_register(QUEUE_NOTIFY, QUEUE_TX);
	while (q->used.index == q->seen)
		__asm__ volatile("pause");
	q->seen++;
}

static struct caller *caller(u32 port)
{
	int number;
	for (number = 0; number < CALLERS; number++)
		if (callers[number].port == port)
			return &callers[number];
	return 0;
}

static void take(volatile struct header *packet)
{
	struct caller *who = caller(packet->from_port);
	switch (packet->op) {
	case OP_REQUEST:
		who = packet->to_port == PORT ? caller(0) : 0;
		if (!who) {
			answer(packet, OP_RST, 0, 0, 0);
			break;
		}
		who->port = packet->from_port;
		who->consumed = 0;
		answer(packet, OP_RESPONSE, 0, 0, 0);
		break;
	case OP_RW:
		if (!who) {
			answer(packet, OP_RST, 0, 0, 0);
			break;
		}
		who->consumed += packet->len;
		answer(packet, OP_RW, (volatile u8 *)(packet + 1), packet->len, who->consumed);
		break;
	case OP_SHUTDOWN:
		if (who)
			who->port = 0;
		answer(packet, OP_RST, 0, 0, 0);
		break;
	case OP_CREDIT_REQUEST:
		if (who)
			answer(packet, OP_CREDIT_UPDATE, 0, 0, who->consumed);
		break;
	case OP_RST:
		if (who)
			who->port = 0;
		break;
	}
}

/* Called at every tick. */
void listen_look(void)
{
	volatile struct queue *events = &queues[QUEUE_EVENT], *received = &queues[QUEUE_RX];
	int number, told = 0;
	if (!device)
		return;
	while (events->used.index != events->seen) {
		u32 id = events->used.ring[events->seen++ % SIZE].id;
		for (number = 0; number < CALLERS; number++)
			callers[number].port = 0;
		offer(QUEUE_EVENT, id, 4, 2);
		told = 1;
	}
	if (told) {
		write_register(QUEUE_NOTIFY, QUEUE_EVENT);
		say("reset\n");
	}
	for (told = 0; received->used.index != received->seen; told = 1) {
		u32 id = received->used.ring[received->seen++ % SIZE].id;
		take((volatile struct header *)received->buffers[id]);
		offer(QUEUE_RX, id, BUFFER, 2);
	}
	if (told)
		write_register(QUEUE_NOTIFY, QUEUE_RX);
}
