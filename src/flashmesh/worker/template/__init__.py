"""Making workers: the supervisor of an endpoint, the zygote it forks, and what a fresh worker sheds."""
