import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.UUID;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Classifies images over HTTP with nothing but a JDK of version 11 or later.
 *
 * <pre>java examples/Classify.java http://127.0.0.1:8000 MODEL FILE...</pre>
 */
public final class Classify {
    // One line of the answer; a JSON library of your own reads it better.
    private static final Pattern INDEX = Pattern.compile("\"index\":(\\d+)");
    private static final Pattern LABEL = Pattern.compile("\"label\":\"([^\"]+)\"");
    private static final Pattern PROBABILITY = Pattern.compile("\"probability\":([0-9.eE-]+)");
    private static final Pattern CODE = Pattern.compile("\"code\":\"([^\"]+)\"");
    private static final Pattern MESSAGE = Pattern.compile("\"message\":\"([^\"]+)\"");

    public static void main(String[] arguments) throws Exception {
        Path[] files = Arrays.stream(arguments).skip(2).map(Path::of).toArray(Path[]::new);
        String boundary = UUID.randomUUID().toString();
        HttpRequest request =
            HttpRequest.newBuilder(
                    URI.create(arguments[0] + "/v1/models/" + arguments[1] + "/classify"))
                .header("Content-Type", "multipart/form-data; boundary=" + boundary)
                .header("Accept", "application/x-ndjson")
                .POST(HttpRequest.BodyPublishers.ofByteArray(form(files, boundary)))
                .build();
        HttpResponse<String> response =
            HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            System.err.println(first(MESSAGE, response.body()));
            System.exit(1);
        }
        String[] lines = new String[files.length];
        for (String item : response.body().split("\n")) {
            lines[Integer.parseInt(first(INDEX, item))] = line(item);
        }
        for (int place = 0; place < files.length; place++) {
            System.out.println(files[place].getFileName() + " " + lines[place]);
        }
    }

    private static String line(String item) {
        if (item.contains("\"status\":\"error\"")) {
            return first(CODE, item) + ": " + first(MESSAGE, item);
        }
        double probability = Double.parseDouble(first(PROBABILITY, item));
        return first(LABEL, item) + String.format(java.util.Locale.ROOT, " %.4f", probability);
    }

    private static byte[] form(Path[] files, String boundary) throws IOException {
        ByteArrayOutputStream form = new ByteArrayOutputStream();
        for (Path file : files) {
            String head =
                "--" + boundary + "\r\nContent-Disposition: form-data; name=\"files\"; filename=\""
                    + file.getFileName() + "\"\r\n\r\n";
            form.write(head.getBytes(StandardCharsets.UTF_8));
            form.write(Files.readAllBytes(file));
            form.write("\r\n".getBytes(StandardCharsets.UTF_8));
        }
        form.write(("--" + boundary + "--\r\n").getBytes(StandardCharsets.UTF_8));
        return form.toByteArray();
    }

    private static String first(Pattern pattern, String text) {
        Matcher found = pattern.matcher(text);
        return found.find() ? found.group(1) : "";
    }
}
