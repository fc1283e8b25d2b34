// Fork chains that outrun whoever looks for them: fork, the parent exits, repeat,
// without an exec, so that a generation lasts a fraction of a millisecond.
//
//   chain COUNT SECONDS
//
// The chains end by themselves after that time, if nobody ends them.
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void run(time_t end) {
	while (time(NULL) < end) {
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
	time_t end = time(NULL) + atoi(argv[2]);
	for (int i = 0; i < atoi(argv[1]); i++)
		if (fork() == 0)
			run(end);
	return 0;
}
