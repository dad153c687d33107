import "reflect-metadata";
import * as x509 from "@peculiar/x509";

// Imported only where there is a request to read: the ASN.1 library costs about 10 MB.

/** The common name of a certificate request (PKCS#10, PEM) and the names and addresses that it is for. Throws for what is none. */
export function readCertificateRequest(pem: string): { readonly commonName: string; readonly names: string[] } {
	const request = new x509.Pkcs10CertificateRequest(pem);
	const alternative = request.extensions.find((one) => one instanceof x509.SubjectAlternativeNameExtension);
	const names = alternative?.names.items.map(({ value }) => value) ?? [];
	return { commonName: request.subjectName.getField("CN").join(), names };
}
