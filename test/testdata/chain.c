// Fork chains that outrun whoever looks for them: fork, the parent exits, repeat,
// without an exec, so that a generation lasts a fraction of a millisecond.
//
//   chain COUNT SECONDS
//
// The chains end by themselves after that time, or when this program's file is
// removed. Every process of them shares a flock(2) of that file, from its fork to
// its exit: so whether one is alive can be told for certain, and not by catching
// sight of one.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int is_there(int file) {
	struct stat info;
	return fstat(file, &info) == 0 && info.st_nlink > 0;
}

static void run(int file, time_t end) {
	while (is_there(file) && time(NULL) < end) {
		pid_t pid = fork();
		if (pid > 0)
			_exit(0);
		if (pid == 0)
			setsid();
	}
	_exit(0);
}

int main(int argc, char **argv) {
	if (argc != 3)
		return 2;
	int file = open("/proc/self/exe", O_RDONLY);
	if (flock(file, LOCK_SH) != 0)
		return 3;
	time_t end = time(NULL) + atoi(argv[2]);
	for (int i = 0; i < atoi(argv[1]); i++)
		if (fork() == 0)
			run(file, end);
	return 0;
}
