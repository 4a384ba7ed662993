// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * One-byte request/response over TCP between two network namespaces, both ends on one processor.
 *
 *   rr CLIENT_NETNS SERVER_NETNS ADDRESS PORT CPU WARMUP SLICES TRIPS [KIND]
 *
 * KIND `rr`: a trip is one byte there and back. `connect`: a connection, one byte in it, its end. `bulk`: a megabyte
 * there and one back.
 *
 * Both ends share a processor, so that waking up another one (which in a virtual machine costs more than the whole
 * path under test, and varies) is no part of the figure. Prints the client's port, then for each slice of TRIPS round
 * trips two numbers in nanoseconds: how long a system call took around it (the pace of the processor at that time, the
 * slower one of before and after), and the median round trip.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MEGABYTE = 1000000 };

static void fail(const char *what)
{
	fprintf(stderr, "rr: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void enter(const char *netns)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "/var/run/netns/%s", netns);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		fail(netns);
	close(fd);
}

static int stream_socket(void)
{
	struct timeval limit = {.tv_sec = 5};
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)))
		fail("socket");
	return fd;
}

/* The client's, for the trips. */
static struct sockaddr_in address = {.sin_family = AF_INET};
static int connection;

static int dial(void)
{
	int fd = stream_socket();

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		fail("connect");
	return fd;
}

static int answer(int listener)
{
	int one = 1, fd = accept(listener, NULL, NULL);

	if (fd < 0)
		fail("accept");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static int receive_megabyte(int fd)
{
	static char buffer[65536];
	ssize_t got;

	for (int left = MEGABYTE; left; left -= got) {
		got = recv(fd, buffer, left < (int)sizeof(buffer) ? left : (int)sizeof(buffer), 0);
		if (got <= 0)
			return -1;
	}
	return 0;
}

static int send_megabyte(int fd)
{
	static char buffer[65536];
	ssize_t put;

	for (int left = MEGABYTE; left; left -= put) {
		put = send(fd, buffer, left < (int)sizeof(buffer) ? left : (int)sizeof(buffer), MSG_NOSIGNAL);
		if (put <= 0)
			return -1;
	}
	return 0;
}

static void serve_bytes(int listener)
{
	int fd = answer(listener);
	char byte;

	while (recv(fd, &byte, 1, 0) == 1)
		if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1)
			break;
	close(fd);
}

static void serve_connections(int listener)
{
	char byte;

	for (;;) {
		int fd = answer(listener);

		(void)!recv(fd, &byte, 1, 0);
		close(fd);
	}
}

static void serve_megabytes(int listener)
{
	int fd = answer(listener);

	while (!receive_megabyte(fd) && !send_megabyte(fd))
		;
	close(fd);
}

static int ascending(const void *one, const void *other)
{
	unsigned a = *(const unsigned *)one, b = *(const unsigned *)other;

	return a < b ? -1 : a > b;
}

static unsigned long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* A fixed piece of work in the kernel: ns per call. */
static unsigned pace(void)
{
	enum { CALLS = 400 };
	unsigned long long start = now();

	for (int i = 0; i < CALLS; i++)
		syscall(SYS_getppid);
	return (now() - start) * 100 / CALLS;
}

static void trip_of_a_byte(void)
{
	char byte = 'x';

	if (send(connection, &byte, 1, MSG_NOSIGNAL) != 1)
		fail("send");
	if (recv(connection, &byte, 1, 0) != 1)
		fail("receive");
}

/* The server closes when it has the byte. */
static void trip_of_a_connection(void)
{
	int fd = dial();
	char byte = 'x';

	if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1)
		fail("send");
	if (recv(fd, &byte, 1, 0))
		fail("receive the end");
	close(fd);
}

static void trip_of_a_megabyte(void)
{
	if (send_megabyte(connection))
		fail("send");
	if (receive_megabyte(connection))
		fail("receive");
}

static const struct kind {
	const char *name;
	void (*serve)(int listener);
	void (*trip)(void);
} kinds[] = {
	{"rr", serve_bytes, trip_of_a_byte},
	{"connect", serve_connections, trip_of_a_connection},
	{"bulk", serve_megabytes, trip_of_a_megabyte},
};

static const struct kind *kind_of(const char *name)
{
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (!strcmp(kinds[i].name, name))
			return &kinds[i];
	return NULL;
}

int main(int argc, char **argv)
{
	const struct kind *kind = argc == 10 ? kind_of(argv[9]) : &kinds[0];
	struct sockaddr_in own;
	socklen_t length = sizeof(own);
	int listener, warmup, slices, trips, status;
	unsigned long long start, end;
	unsigned before, after;
	unsigned *took;
	cpu_set_t cpus;
	pid_t server;

	if (argc < 9 || argc > 10 || !kind || inet_pton(AF_INET, argv[3], &address.sin_addr) != 1) {
		fprintf(stderr,
			"usage: rr CLIENT_NETNS SERVER_NETNS ADDRESS PORT CPU WARMUP SLICES TRIPS [rr|connect|bulk]\n");
		return 2;
	}
	address.sin_port = htons(atoi(argv[4]));
	warmup = atoi(argv[6]);
	slices = atoi(argv[7]);
	trips = atoi(argv[8]);
	took = calloc(trips, sizeof(*took));
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[5]), &cpus);
	if (!took || sched_setaffinity(0, sizeof(cpus), &cpus))
		fail("set-up");

	enter(argv[2]);
	listener = stream_socket();
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 8))
		fail("listen");
	server = fork();
	if (server < 0)
		fail("fork");
	if (!server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		kind->serve(listener);
		_exit(0);
	}
	close(listener);

	enter(argv[1]);
	connection = dial();
	if (getsockname(connection, (struct sockaddr *)&own, &length))
		fail("getsockname");
	if (kind->trip == trip_of_a_connection)
		close(connection);
	for (int i = 0; i < warmup; i++)
		kind->trip();
	printf("%u\n", ntohs(own.sin_port));
	before = pace();
	for (int slice = 0; slice < slices; slice++) {
		start = now();
		for (int i = 0; i < trips; i++) {
			kind->trip();
			end = now();
			took[i] = end - start;
			start = end;
		}
		after = pace();
		qsort(took, trips, sizeof(*took), ascending);
		printf("%.2f %u\n", (before > after ? before : after) / 100.0, took[trips / 2]);
		before = after;
	}
	printf("done\n");
	fflush(stdout);
	/* The caller looks at the flow while the connection is open, and closes standard input when it is done. */
	(void)!read(0, took, 1);
	if (kind->trip != trip_of_a_connection)
		close(connection);
	kill(server, SIGTERM);
	waitpid(server, &status, 0);
	return 0;
}
