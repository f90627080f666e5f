from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="hello")


@remote(cpu)
def hello(name: str = "world") -> dict:
    """Say hello from a worker process."""
    return {"message": f"Hello, {name}!"}
