// Ends a command by a signal even where a long C++ call keeps Python's handlers from running; see runtime_signals.py.
// The handler starts a timer and calls the handler that was there, Python's. When the timer is up the process is over:
// everything here is async-signal-safe.
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

namespace {
const int FILES = 64, LENGTH = 4096, SOON_MS = 150;
struct sigaction before[65];
char files[FILES][LENGTH];
volatile sig_atomic_t grace_ms = 0, first = 0, armed = 0;
timer_t timer;
pid_t owner;

void give_up(int) {
    for (int i = 0; i < FILES; i++)
        if (files[i][0]) unlink(files[i]);
    _exit(128 + (first ? first : SIGTERM));
}

void start_timer(int ms) {
    struct itimerspec now, wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.it_value.tv_sec = ms / 1000, wanted.it_value.tv_nsec = ms % 1000 * 1000000L;
    if (armed && timer_gettime(timer, &now) == 0 && now.it_value.tv_sec * 1000 + now.it_value.tv_nsec / 1000000 < ms)
        return;
    armed = 1;
    timer_settime(timer, 0, &wanted, nullptr);
}

void handle(int number, siginfo_t* info, void* context) {
    int saved = errno;
    if (getpid() == owner) {
        if (first && number == SIGINT) start_timer(SOON_MS);
        else if (grace_ms) start_timer(grace_ms);
        if (!first) first = number == SIGUSR1 ? SIGTERM : number;  // of mpirun
    }
    struct sigaction* old = &before[number];
    if (old->sa_flags & SA_SIGINFO) old->sa_sigaction(number, info, context);
    else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) old->sa_handler(number);
    errno = saved;
}
}  // namespace

extern "C" {
// Put the handler before those of `count` signals; 0, or the error.
int jseg_signals_install(const int* numbers, int count) {
    struct sigevent event;
    struct sigaction action;
    memset(&event, 0, sizeof event);
    memset(&action, 0, sizeof action);
    owner = getpid();
    event.sigev_notify = SIGEV_SIGNAL, event.sigev_signo = SIGRTMAX - 2;
    action.sa_handler = give_up;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || sigaction(SIGRTMAX - 2, &action, nullptr)) return errno;
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO;
    for (int i = 0; i < count; i++) {
        if (sigaction(numbers[i], nullptr, &before[numbers[i]])) return errno;
        action.sa_mask = before[numbers[i]].sa_mask;
        if (sigaction(numbers[i], &action, nullptr)) return errno;
    }
    return 0;
}

// Milliseconds from the first signal to the end; 0 without limit, until a second SIGINT comes.
void jseg_signals_grace(int ms) { grace_ms = ms; }

// Remove this file at the end; its place, or -1 when there is none.
int jseg_signals_part(const char* path) {
    for (int i = 0; i < FILES; i++)
        if (!files[i][0] && strlen(path) < LENGTH) {
            strcpy(files[i] + 1, path + 1);
            files[i][0] = path[0];  // last: the handler may look at any moment
            return i;
        }
    return -1;
}

void jseg_signals_done(int place) { files[place][0] = 0; }
}
