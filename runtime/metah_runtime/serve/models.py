"""The shapes of what the server answers, for its OpenAPI document and for clients."""

from pydantic import BaseModel, Field


class ProblemBody(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="what is wrong, with the value")
    rule: str = Field(description="the rule that it breaks")
    fix: str = Field(description="what to do")


class Neighbour(BaseModel):
    """One indexed image."""

    id: int
    distance: int = Field(description="Hamming distance to the query, in bits")
    name: str = Field(description="file name; below the folder of the images, its path there")
    label: str | None = Field(description="null where not known")
    domain: str | None = Field(description="null where not known")


class SearchAnswer(BaseModel):
    """The nearest images, in the order (distance, id), all of one version of the index."""

    version: str = Field(description="of the index that answered")
    code: str = Field(description="the query's code in hex, most significant bit first")
    bits: int
    logits: list[float] | None = Field(
        description="what the bits are the signs of, one a bit, a small one is unsure; null for a "
        "query that was no image"
    )
    neighbours: list[Neighbour]
    within: int | None = Field(description="all images within the radius; null for k")
    cut: bool = Field(description="whether some of those within the radius were left out")


class Bundle(BaseModel):
    """The model that encodes queries."""

    name: str
    fingerprint: str = Field(description="of the model; only its codes can be compared")
    digest: str = Field(description="SHA-256 of the model file")
    device: str
    image: list[int] = Field(description="height, width, channels that the model sees")


class Span(BaseModel):
    """The values that a number may have."""

    least: int
    most: int
    default: int | None


class IndexAnswer(BaseModel):
    """What is served."""

    version: str
    count: int = Field(description="indexed images")
    bits: int = Field(description="length of a code")
    bundle: Bundle
    distances: Span = Field(description="radius, in bits")
    k: Span
    limit: Span = Field(description="neighbours in the answer to a radius")
    max_body: int = Field(description="bytes of an image")
    max_pixels: int
    thumbnails: bool = Field(description="whether pictures of indexed images can be had")


class Health(BaseModel):
    """The state of the server."""

    status: str
