"""The answer to an upload: where it says how the upload goes on, that is at the gateway."""

from gateway.errors import VendorBroke
from gateway.proxy.call_record import Status
from gateway.proxy.headers import Headers
from gateway.proxy.relay import STATUS_ERROR_MIN, Relay
from gateway.proxy.resumable_uploads import without_addresses


class UploadRelay(Relay):
    """The answer to one attempt, whose headers may have an upload's address."""

    def _begin(self, headers: Headers, *, length: int | None = None) -> None:
        stored = self._stored
        assert stored is not None
        begun = stored.facts.begins_upload
        if begun is None or self._status >= STATUS_ERROR_MIN:
            super()._begin(without_addresses(headers), length=length)
            return
        try:
            passed, found = begun.point_back(headers)
        except VendorBroke as error:
            self._fail(Status.VENDOR_BROKE, error)
            return
        stored.tell(found)
        super()._begin(passed, length=length)
